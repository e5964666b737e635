"""What a run keeps of its configuration, and where: beside its logs, and in each of its checkpoints."""

from pathlib import Path
import sys
from typing import Any
import uuid

from lightning.pytorch.loggers import Logger
import pytest
import torch
from toys import SMALL_DIGITS
import yaml

from lit_distill import LitDistiller, load_student
from lit_distill.cli import main, run_config
from lit_distill.models.signature import is_own

SHORT = ["--config", SMALL_DIGITS]


class LikeWandb(Logger):
    """Names its runs as ``WandbLogger`` does: the run's id, which is new unless given, is the version."""

    def __init__(self, save_dir: str = ".", project: str = "project", id: str | None = None) -> None:  # noqa: A002  # wandb's own
        super().__init__()
        self._save_dir, self._project, self._id, self._run = save_dir, project, id, ""

    @property
    def experiment(self) -> str:
        self._run = self._run or self._id or uuid.uuid4().hex
        return self._run

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str | None:
        return self._run or self._id

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "somebodys", sys.modules[__name__])
    monkeypatch.setattr(LikeWandb, "__module__", "somebodys")


WANDB = ["--trainer.logger=somebodys.LikeWandb", "--trainer.logger.save_dir=runs"]


def test_runs_of_a_logger_that_shares_its_folder_have_configurations_of_their_own(capfd) -> None:
    for _ in range(2):
        main(["fit", *SHORT, *WANDB])
    first, second = sorted(Path("runs/project").iterdir())
    for run in (first, second):
        assert {path.name for path in run.iterdir()} == {"config.yaml", "checkpoints"}
    main(["fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), "--trainer.max_epochs=2"])
    assert len(list(Path("runs/project").glob("*/config.yaml"))) == 3
    assert not list(Path("runs").glob("*.yaml"))


def test_a_run_that_is_continued_under_its_own_id_keeps_both_configurations(capfd) -> None:
    main(["fit", *SHORT, *WANDB, "--trainer.logger.id=mine"])
    run = Path("runs/project/mine")
    before = (run / "config.yaml").read_text()
    main(["fit", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs=2"])
    assert (run / "config.yaml").read_text() == before
    assert yaml.safe_load((run / "config-1.yaml").read_text())["trainer"]["max_epochs"] == 2
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", *SHORT, *WANDB, "--trainer.logger.id=mine"])
    assert "runs/project/mine has the logs of another run, and they are not overwritten" in capfd.readouterr().err


@pytest.mark.parametrize("again", ["same command", "resume"])
def test_a_fixed_version_loses_nothing(again: str, capfd) -> None:
    main(["fit", *SHORT, "--trainer.logger.version=mine"])
    run = Path("logs/digits/mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run / "metrics.csv" in before
    capfd.readouterr()
    resume = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs=2"]
    with pytest.raises(SystemExit):
        main(["fit", *(SHORT if again == "same command" else resume), "--trainer.logger.version=mine"])
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: logs/digits/mine has the logs of another run, and they are not overwritten: choose")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_weights_alone_serves_all_but_a_resume(capfd) -> None:
    main(["fit", *SHORT, "--checkpoint.save_weights_only=true"])
    (best,) = map(str, Path("logs").rglob("best*.ckpt"))
    assert "optimizer_states" not in torch.load(best, weights_only=True)
    for command in ("test", "validate", "predict"):
        main([command, "--ckpt_path", best])
    out = capfd.readouterr().out
    assert "test/teacher_accuracy" in out
    assert "wrote 360 predictions" in out
    main(["export", "--ckpt_path", best, "--output", "exported"])
    image = torch.rand(2, 1, 8, 8)
    expected = LitDistiller.load_from_checkpoint(best).eval()(image).logits
    assert torch.equal(load_student("exported")(image).logits, expected)
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", best, "--trainer.max_epochs=2"])
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: this checkpoint holds weights alone, from which no run goes on: resume from last")


def test_weights_of_classes_are_a_list(capfd) -> None:
    weight = [1.0, 2.5, *[1.0] * 8]
    flags = ["--model.criterion=torch.nn.CrossEntropyLoss", f"--model.criterion.weight={weight}", "--model.alpha=0"]
    main(["fit", *SHORT, *flags])
    (path,) = Path("logs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["lit_distill_config"]["model"]["criterion"]["init_args"]["weight"] == weight
    module = LitDistiller.load_from_checkpoint(path)
    assert module.double().criterion.weight.tolist() == weight  # it moves with the module
    assert module.criterion.weight.dtype == torch.float64
    main(["test", "--ckpt_path", str(path)])
    # What is given now counts, not the checkpoint's.
    other = [3.0] * 10
    main(["fit", "--ckpt_path", str(path), "--trainer.max_epochs=2", f"--model.criterion.weight={other}"])
    newest = torch.load(max(Path("logs").rglob("last.ckpt")), weights_only=True)
    assert newest["state_dict"]["criterion.weight"].tolist() == other
    main(["fit", "--ckpt_path", str(path), "--trainer.max_epochs=2", "--model.criterion.weight=null"])
    capfd.readouterr()
    for value, message in (
        ("[1,2]", "the criterion has weights for 2 classes, but there are 10: give it one for each"),
        ("abc", "model.criterion.weight: Not of type Tensor: expected numbers, such as [1, 2.5], got abc"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *SHORT, *flags[:1], f"--model.criterion.weight={value}"])
        assert capfd.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_the_configuration_is_dumped_and_signed_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signed: list[Any] = []

    def sign(config: Any) -> str:
        signed.append(config)
        return sign_before(config)

    sign_before = run_config.sign
    monkeypatch.setattr(run_config, "sign", sign)
    main(["fit", *SHORT, "--trainer.max_epochs=2"])
    assert len(signed) == 1
    (last,), (best,) = (list(tmp_path.rglob(name)) for name in ("last.ckpt", "best*.ckpt"))
    for path in (last, best):
        saved = torch.load(path, weights_only=True)
        assert saved[run_config.KEY] == signed[0]
        assert is_own(saved[run_config.KEY], saved[run_config.SIGNATURE])
    assert signed[0]["trainer"]["max_epochs"] == 2
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=3"])
    assert len(signed) == 2
    assert signed[1]["trainer"]["max_epochs"] == 3
