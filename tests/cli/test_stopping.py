"""However a fit ends early, it says so, and the line that it prints goes on to the bits of one that did not."""

from collections.abc import Callable
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
from typing import Any

from kill_and_resume import differences
import pytest
import torch
from toys import SMALL_DIGITS

from lit_distill import LitDistiller
from lit_distill.checkpoint import AtomicCheckpointIO
from lit_distill.cli import DistillCLI, main, signals
from lit_distill.cli.checkpoints import FINISHED
from lit_distill.cli.stopping import command

ROOT = Path(__file__).parents[2]
# 8 batches an epoch, 24 in all; with 3 batches a window 3 steps an epoch, of 3, 3 and 2 batches.
FLAGS = [f"--config={SMALL_DIGITS}", "--trainer.max_epochs=3", "--trainer.limit_train_batches=8"]
FLAGS += ["--retrospection.interval=1", "--model.student.dropout=0.1", "--trainer.limit_val_batches=1"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # pytest's own handler of Ctrl-C is of no use here, and a job in the background has none.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(signals, "_SAME_REQUEST", 0.0)
    yield
    signal.signal(signal.SIGINT, before)


def fit(*flags: str) -> int:
    """Run it in this process, and return the exit code."""
    try:
        main(["fit", *FLAGS, *flags])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def last(pattern: str = "**/last.ckpt") -> dict[str, Any]:
    newest = max(Path().glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(newest, weights_only=True)


def kept(checkpoint: dict[str, Any]) -> dict[str, Any]:
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "loops")
    (memory,) = (v for k, v in checkpoint["callbacks"].items() if k.startswith("LearningWithRetrospection"))
    return {**{name: checkpoint[name] for name in names}, "memory": memory}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Return the end of a run that nothing stops, by the batches of an accumulation window."""
    ends: dict[int, dict[str, Any]] = {}

    def run(window: int) -> dict[str, Any]:
        if window not in ends:
            here = Path.cwd()
            os.chdir(tmp_path_factory.mktemp("whole"))
            assert fit(f"--trainer.accumulate_grad_batches={window}") == 0
            ends[window] = kept(last())
            os.chdir(here)
        return ends[window]

    return run


def at_batch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Act within the training step of that batch, counted from 1 over all epochs."""
    step = LitDistiller.training_step

    def training_step(self: LitDistiller, batch: Any, batch_idx: int) -> torch.Tensor:
        if 8 * self.current_epoch + batch_idx + 1 == number:
            act()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitDistiller, "training_step", training_step)


def send(*numbers: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def printed(out: str) -> list[str]:
    """Return the arguments of the one command that the output tells to resume with."""
    (line,) = re.findall(r"Resume with\n +(.*)", out)
    words = shlex.split(line)
    return words[words.index("fit") + 1 :]


@pytest.mark.parametrize(
    ("number", "batch", "window"),
    [
        (signal.SIGTERM, 12, 3),
        pytest.param(signal.SIGTERM, 12, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 8, 3, marks=pytest.mark.slow),  # the epoch's last
        pytest.param(signal.SIGINT, 12, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 12, 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_signal_ends_with_its_code_and_a_checkpoint_of_the_moment(
    number: signal.Signals, batch: int, window: int, undisturbed: Any, monkeypatch, capfd
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(signals, "_leave_terminal", lambda: None)
        at_batch(patch, batch, send(number))
        assert fit(f"--trainer.accumulate_grad_batches={window}") == 128 + number
    out = capfd.readouterr().out
    assert f"with {batch // 8} of 3 epochs done. Resume with" in out
    trained = {(12, 3): 14, (12, 1): 12, (2, 3): 3, (8, 3): 8}[batch, window]  # to a window's end
    assert last()["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == trained
    assert not last()[FINISHED]
    assert fit_again(out) == 0
    assert differences(kept(last()), undisturbed(window)) == []


def fit_again(out: str, *flags: str) -> int:
    try:
        main(["fit", *printed(out), *flags])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("limit", ["--trainer.max_steps=4", "--trainer.max_time=00:00:00:00"])
def test_a_limit_within_the_epoch_gives_up_no_part_of_it(limit: str, window: int, undisturbed: Any, capfd) -> None:
    assert fit(limit, f"--trainer.accumulate_grad_batches={window}") == 0
    assert not last()[FINISHED]
    out = capfd.readouterr().out
    assert "last checkpoint  logs" in out  # the closing table
    assert fit_again(out) == 0
    assert last()[FINISHED]
    assert differences(kept(last()), undisturbed(window)) == []
    assert last()["lr_schedulers"][0]["_last_lr"] == [0.0, 0.0]


def test_a_higher_max_steps_goes_on_within_the_epoch(undisturbed: Any, capfd) -> None:
    assert fit("--trainer.max_steps=4") == 0
    (path,) = Path().glob("**/last.ckpt")
    main(["fit", "--ckpt_path", str(path), "--trainer.max_steps=24"])
    assert differences(kept(last()), undisturbed(1)) == []


def test_max_time_is_that_of_each_run(capfd) -> None:
    fit("--trainer.max_time=00:00:00:00")
    for _ in range(2):  # each trains one step more
        capfd.readouterr()
        (*_, path) = sorted(Path().glob("**/last.ckpt"))
        main(["fit", "--ckpt_path", str(path)])
        assert "Stopped by max_time" in capfd.readouterr().out
    assert last()["global_step"] == 3


def test_early_stopping_is_an_end(capfd) -> None:
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/nll"]
    assert fit(*stop, "--trainer.callbacks.divergence_threshold=0") == 0
    assert last()["epoch"] == 0
    assert last()[FINISHED]
    assert "Stopped" not in capfd.readouterr().out


@pytest.mark.parametrize("trigger", ["train_time_interval=0:00:00.001", "every_n_train_steps=1"])
def test_a_checkpoint_within_the_epoch_waits_for_the_end_of_the_accumulation_window(
    trigger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def spy(self: Any, checkpoint: dict[str, Any], path: Any, **kwargs: Any) -> None:
        if Path(path).name == "last.ckpt":
            saved.append(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"])
        save(self, checkpoint, path, **kwargs)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", spy)
    fit(f"--checkpoint.{trigger}", "--trainer.accumulate_grad_batches=3", "--trainer.max_epochs=1")
    assert saved == [3, 6, 8, 8]


def test_any_checkpoint_within_an_accumulation_window_goes_on_from_the_windows_start(undisturbed: Any) -> None:
    arguments = ["train_time_interval=0:00:00.001", "save_top_k=-1", "dirpath=own", "filename={step}"]
    flags = [f"--trainer.callbacks.{argument}" for argument in arguments]
    fit("--trainer.callbacks+=ModelCheckpoint", *flags, "--trainer.accumulate_grad_batches=3")
    within = sorted(Path("own").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    counted = [last(f"own/{p.name}")["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"] for p in within]
    place = next(i for i, c in enumerate(counted) if c["processed"] == 11)  # of two or three batches more
    main(["fit", "--ckpt_path", str(within[place]), "--trainer.callbacks=null"])
    assert differences(kept(last("logs/**/last.ckpt")), undisturbed(3)) == []


def test_a_second_request_stops_at_once_and_the_last_checkpoint_is_still_named(undisturbed, monkeypatch, capfd) -> None:
    with monkeypatch.context() as patch:
        at_batch(patch, 12, send(signal.SIGINT, signal.SIGINT))
        # An interval longer than the epoch once hid the checkpoint of the epoch's end.
        assert fit("--checkpoint.every_n_train_steps=1000") == 130
    out = capfd.readouterr().out
    assert "Stopped by Ctrl-C with 1 of 3 epochs done. Resume with" in out
    assert last()["global_step"] == 8
    assert fit_again(out) == 0
    assert "last checkpoint  logs" in capfd.readouterr().out
    assert differences(kept(last()), undisturbed(1)) == []


def test_before_the_first_step_of_a_resumed_run_its_own_command_is_printed(monkeypatch, capfd) -> None:
    assert fit("--trainer.max_steps=4") == 0
    (path,) = Path().glob("**/last.ckpt")
    capfd.readouterr()
    again = ["--ckpt_path", str(path), "--trainer.max_steps=24"]
    with monkeypatch.context() as patch:
        patch.setattr(LitDistiller, "setup", lambda self, stage: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as end:
            main(["fit", *again])
    assert end.value.code == 130
    assert printed(capfd.readouterr().out) == again


def test_before_a_fresh_run_has_begun_the_same_command_starts_again(monkeypatch, capfd) -> None:
    monkeypatch.setattr(DistillCLI, "instantiate_classes", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert fit() == 143
    out = capfd.readouterr()
    assert "Stopped. The same command starts again." in out.out
    assert "Resume" not in out.out
    assert out.err == ""


def test_a_signal_that_an_exception_follows_is_still_a_stop(monkeypatch, capfd) -> None:
    def killed() -> None:  # as torch does when the signal goes to the whole group
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    at_batch(monkeypatch, 12, killed)
    assert fit() == 143
    captured = capfd.readouterr()
    assert "Resume with" in captured.out
    assert captured.err == ""


def test_an_error_has_a_line_of_its_own_after_the_progress_bar(monkeypatch, capfd) -> None:
    def fail() -> None:
        raise ValueError("no good")

    at_batch(monkeypatch, 2, fail)
    assert fit("--trainer.enable_progress_bar=true") == 1
    captured = capfd.readouterr()
    assert "Epoch 0:" in captured.out
    assert captured.out.endswith("\n")
    assert captured.err == "error: no good\n"


def test_signals_are_given_back(monkeypatch) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    fit("--trainer.max_steps=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "lightning":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("program", [["-m", "lit_distill.cli"], [str(ROOT / "train.py")]], ids=["module", "script"])
def test_ctrl_c_while_python_imports_is_quiet(program: list[str], tmp_path) -> None:
    (tmp_path / "sitecustomize.py").write_text(IMPORTING)
    done = subprocess.run(
        [sys.executable, *program, "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_shared_folder_keeps_the_last_checkpoint_of_each_run(tmp_path) -> None:
    where = f"--checkpoint.dirpath={tmp_path / 'shared'}"
    fit(where, "--trainer.max_steps=2", "--seed_everything=1")
    first = (tmp_path / "shared/last.ckpt").read_bytes()
    fit(where, "--trainer.max_steps=3", "--seed_everything=2")
    assert (tmp_path / "shared/last.ckpt").read_bytes() == first
    assert last("**/last-v1.ckpt")["global_step"] == 3
    main(["fit", "--ckpt_path", str(tmp_path / "shared/last.ckpt"), "--trainer.max_steps=5"])  # its own goes on
    assert last("**/last.ckpt")["global_step"] == 5
    assert not [path.name for path in (tmp_path / "shared").iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_the_checkpoint_before(monkeypatch, capfd) -> None:
    save = torch.save

    def full(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] > 8:
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert fit() == 1
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert re.fullmatch(
        r"error: No space left on device: .*ckpt was not written, no other file was changed: make room, then go on",
        line,
    )
    assert "Stopped by an error with 1 of 3 epochs done. Resume with" in captured.out
    assert fit_again(captured.out) == 0


def test_the_printed_line_is_for_a_shell_and_for_this_interpreter(tmp_path, monkeypatch) -> None:
    arguments = ["fit", "--ckpt_path", "my runs/last.ckpt"]
    monkeypatch.setattr(sys, "argv", ["the program", "fit", "--config=digits"])

    def printed_for(*program: str) -> str:
        monkeypatch.setattr(sys, "orig_argv", [*program, "fit", "--config=digits"])
        return command(arguments)

    run = "fit --ckpt_path 'my runs/last.ckpt'"
    assert printed_for("python", "-m", "lit_distill.cli") == f"python -m lit_distill.cli {run}"
    assert printed_for("python3", "my tools/train.py") == f"python3 'my tools/train.py' {run}"
    installed = tmp_path / "lit-distill"
    installed.touch(mode=0o755)
    assert printed_for("/bin/python", str(installed)) == f"/bin/python {installed} {run}"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert printed_for("/bin/python", str(installed)) == f"lit-distill {run}"
