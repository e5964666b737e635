"""One run of ``fit`` among several."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
import hashlib
from importlib.metadata import version
import io
import json
import os
from pathlib import Path
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import yaml

from lit_distill.checks import counted
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.checkpoints import FINISHED
from lit_distill.cli.lock import Holder, Lock
from lit_distill.cli.made_of import differences_in_words, identified
from lit_distill.cli.signals import STAGE, Stopped, stop_signals
from lit_distill.files import process_exists, remove_abandoned_parts, write_atomically
from lit_distill.models import load_safely

# Flags of ``fit`` that end a run early, with the value for no limit. A run that continues ends with the same result.
LIMITS = {"--trainer.max_time=": "null", "--trainer.max_steps=": "-1"}
# Flags that change what a run prints or where it keeps the teacher's answers, and nothing else.
_WITHOUT_EFFECT = ("--trainer.enable_progress_bar", "--trainer.enable_model_summary", "--teacher_cache.folder")
# Flags that would leave no checkpoint where the next stage looks for it, and their values that do no harm.
_HARMLESS = {
    "--trainer.fast_dev_run": ("false", "0", "null"),
    "--trainer.enable_checkpointing": ("true", "1", "null"),
    "--checkpoint.dirpath": ("null",),
}
# A dry run measures a few steps of training and of validation.
_A_FEW = (
    *("--trainer.num_sanity_val_steps=4", "--trainer.max_time=null", "--trainer.enable_progress_bar=false"),
    "--trainer.callbacks+=lit_distill.cli.step_times.StepTimes",
)
_FIT = (sys.executable, "-m", "lit_distill.cli", "fit")


class Estimate(NamedTuple):
    """Seconds of a run, and the seconds that the teacher's cache saves of it."""

    seconds: float
    saved: float


class Stage:
    """One run of ``fit`` among several, in a folder that is named after all that it is made of.

    So it does not run again while that is the same, continues where it was cut off, and overwrites nothing else. Its
    configuration is checked before anything runs.

    Args:
        output: Where the folder is made.
        name: What the run makes, such as ``"teacher"``.
        config: Its configuration, as ``fit --config`` takes it; epochs, logger and the folder of the teacher's cache
            come with the stage.
        epochs: Epochs of the run.
        flags: Flags of ``fit`` that the user adds.
        inputs: What else it is made of: ``photos``, a digest of each by split and name, and ``teacher``, of its file.

    Raises:
        ValueError: If the configuration or a flag is wrong.
    """

    def __init__(
        self,
        output: Path,
        name: str,
        config: Mapping[str, object],
        epochs: int,
        flags: Sequence[str],
        inputs: Mapping[str, object],
    ) -> None:
        for flag in flags:
            option, _, value = flag.partition("=")
            if value.lower() not in _HARMLESS.get(option, [value.lower()]):
                raise ValueError(f"{flag} leaves no checkpoint to go on from in {output}: leave it out")
        # A limit is no part of what the run is made of: a run that ended at one continues with another.
        lasting = [flag for flag in flags if not flag.startswith((*LIMITS, *_WITHOUT_EFFECT))]
        self._made_of = json.dumps(
            {
                "config": identified(config),
                "epochs": epochs,
                "flags": identified(lasting),
                **inputs,
                "version": version("lit-distill"),
            },
            sort_keys=True,
            default=str,
        )
        digest = hashlib.sha256(self._made_of.encode()).hexdigest()[:8]
        self.name, self.epochs, self.flags = name, epochs, list(flags)
        self.folder = output / f"{name}-{digest}"
        self._lock = Lock(self.folder / ".lock")
        if not self.done:
            self._check(config)

    @property
    def config(self) -> Path:
        """The configuration, which ``fit --config`` runs alone."""
        return self.folder / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the run that finished."""
        return self.folder / str(json.loads((self.folder / "done.json").read_text())["checkpoint"])

    @property
    def done(self) -> bool:
        """Whether the stage has finished and its result is there."""
        return (self.folder / "done.json").is_file() and self.checkpoint.is_file()

    def newest(self) -> Path | None:
        """Return the last checkpoint of the newest run that has one."""
        checkpoints = self.folder.glob("version_*/checkpoints/last.ckpt")
        return max(checkpoints, key=lambda path: int(path.parts[-3].removeprefix("version_")), default=None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder. If a command was killed but its run is still going, wait for that run to end.

        Raises:
            ValueError: If another command is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        is_announced = False
        while not self._lock.acquire():
            holder = self._lock.holder()
            if holder is not None:
                awaited = self._awaited(holder)
                if not is_announced:
                    print(f"waiting for {awaited}", flush=True)
                is_announced = True
            stop_signals.check()
            time.sleep(0.1)
        try:
            yield
        finally:
            self._lock.release()

    def run(self, title: str, config: Mapping[str, object]) -> None:
        """Run it, or the rest of it, in its own process.

        Args:
            title: What is printed first.
            config: The configuration, with what earlier stages have made.

        Raises:
            SystemExit: If it fails, or is stopped; it has then said why.
            ValueError: If it was killed, or ended before its last epoch; says what to do.
        """
        if self.done:
            self._say(f"\n{title}: done before, {self.checkpoint}")
            return
        with self.held():
            difference = self._difference()
            _write(self.config, self._text(config))
            _write(self.folder / "made_of.json", self._made_of)
            for folder in self.folder.glob("version_*/checkpoints"):
                remove_abandoned_parts(folder)
            begun = self.newest()
            if begun is None:
                self._say(f"\n{title}")
                if difference:
                    print(f"note: not done before: {difference}", file=sys.stderr, flush=True)
                self._train([*_FIT, "--config", str(self.config), *self.flags])
            elif not _has_finished(begun):
                self._say(f"\n{title}: going on from {begun}")
                # The checkpoint has the configuration and the flags. Limits and flags without effect come from this
                # command: the stored limits are reset first.
                changing = [flag for flag in self.flags if flag.startswith((*LIMITS, *_WITHOUT_EFFECT))]
                self._train([*_FIT, "--ckpt_path", str(begun), *map("".join, LIMITS.items()), *changing])
            last = self._last()
            if not _has_finished(last):
                raise ValueError(
                    f"the {self.name} is not trained to its last epoch, and nothing is made from it: the same command "
                    "goes on from here; if --trainer.max_steps is given, raise it or leave it out"
                )
            self._mark_done(last)

    def try_out(self, title: str, config: Mapping[str, object], steps: int, check_teacher: bool = True) -> "Estimate":
        """Take a few steps, and return how many seconds the whole run would take.

        Args:
            title: What is printed first.
            config: The configuration, with what earlier stages have made.
            steps: Steps of training.
            check_teacher: Warn of a weak teacher.

        Raises:
            SystemExit: If it fails, or is stopped; it has then said why.
        """
        print(f"\n{title}: {counted(steps, 'step')} of its {counted(self.epochs, 'epoch')}", flush=True)
        with self.held():
            _write(self.config, self._text(config))
            checks = f"--trainer.callbacks.check_teacher={json.dumps(check_teacher)}"
            flags = [*self.flags, *_A_FEW, checks, f"--trainer.max_steps={steps}"]
            self._train([*_FIT, "--config", str(self.config), *flags], stdout=subprocess.DEVNULL)
            last = self._last()
            self._mark_done(last)
        measured = load_last(last)["callbacks"]["StepTimes"]
        saved = max(0, self.epochs - measured["views"]) * float(measured["asking"]) if measured["views"] else 0.0
        return Estimate(float(measured["seconds"]) * self.epochs - saved, saved)

    def _awaited(self, holder: Holder) -> str:
        """Return what to wait for.

        Raises:
            ValueError: If the command that holds the folder is still there: it may be at work for long.
        """
        process, host, since = holder
        if host != socket.gethostname() or process_exists(process):
            place = f"{self.folder} since {since}"
            raise ValueError(f"process {process} on {host} is at work in {place}: wait for it, or stop it")
        return f"the {self.name}'s run that process {process} has left behind to stop"

    def _say(self, line: str) -> None:
        print(line, flush=True)

    def _last(self) -> Path:
        last = self.newest()
        if last is None:
            raise ValueError(
                f"the {self.name} left no checkpoint in {self.folder}: --trainer.enable_checkpointing=true"
            )
        return last

    def _mark_done(self, last: Path) -> None:
        _write(self.folder / "done.json", json.dumps({"checkpoint": str(last.relative_to(self.folder))}, indent=1))
        stop_signals.check()

    def _difference(self) -> str:
        """Say how it differs from the most similar other run of its name, of equally similar ones the latest."""
        others = sorted(self.folder.parent.glob(f"{self.name}-*/made_of.json"), key=lambda path: -path.stat().st_mtime)
        now = json.loads(self._made_of)
        made_of = [json.loads(path.read_text()) for path in others if path.parent != self.folder]
        differences = (differences_in_words(now, other, self.name) for other in made_of)
        smallest: list[str] = min(differences, key=len, default=[])
        return ", ".join(smallest)

    def _train(self, command: Sequence[str], stdout: int | None = None) -> None:
        """Run the command, and pass the signals that come here on to it."""
        process = None

        def forward(number: int) -> None:
            if process is not None and process.poll() is None:
                process.send_signal(number)

        stop_signals.listen(forward, hears_all=True)
        try:
            environment = {**os.environ, STAGE: str(os.getpid())}
            # The run holds the lock too: if this process is killed, no other run starts beside it.
            process = subprocess.Popen(command, env=environment, pass_fds=[self._lock.fileno()], stdout=stdout)  # noqa: S603  # this command line, and the user's own flags
            if stop_signals.received is not None:  # while the process was started
                forward(stop_signals.received)
            code = process.wait()
        finally:
            stop_signals.listen(None)
        number = -code if code < 0 else code - 128  # as Python and as a shell say it
        if number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            raise Stopped(stop_signals.received or number)
        if code < 0:
            why = "out of memory? A smaller --data.batch_size needs less; " if number == 9 else ""
            print(
                f"error: the {self.name}'s run was killed by signal {number} ({signal.Signals(number).name}): {why}"
                "the same command goes on from here",
                file=sys.stderr,
            )
            sys.exit(128 + number)
        if code:
            sys.exit(code)

    def _text(self, config: Mapping[str, object]) -> str:
        logger = {"save_dir": str(self.folder.parent), "name": self.folder.name}
        trainer = {
            "max_epochs": self.epochs,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
        }
        cache = config.get("teacher_cache")
        if isinstance(cache, dict):
            arguments = {"folder": str(self.folder.parent / "teacher_cache"), **cache["init_args"]}
            config = {**config, "teacher_cache": {**cache, "init_args": arguments}}
        flags = "".join(f" {shlex.quote(flag)}" for flag in self.flags)
        head = f"# Made by lit-distill distill; alone it is run by\n#   lit-distill fit --config {self.config}{flags}\n"
        return head + yaml.safe_dump({**config, "trainer": trainer}, sort_keys=False)

    def _check(self, config: Mapping[str, object]) -> None:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            path = Path(folder, "config.yaml")
            path.write_text(self._text(config))
            try:
                DistillCLI(["fit", "--config", str(path), *self.flags, "--print_config"])
            except SystemExit as end:
                if end.code:
                    raise


def load_last(checkpoint: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run.

    Raises:
        ValueError: If it cannot be read; names the file to delete.
    """
    try:
        content: dict[str, Any] = load_safely(checkpoint, "checkpoint", mmap=True)
    except ValueError as error:
        raise ValueError(
            f"{error}; delete {checkpoint}, and the same command goes on from the checkpoint before it, or begins anew"
        ) from error
    return content


def _has_finished(checkpoint: Path) -> bool:
    return bool(load_last(checkpoint).get(FINISHED, False))


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as part:
        part.write_text(text)
