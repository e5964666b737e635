"""A run of ``fit`` as one step of several."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
import hashlib
from importlib.metadata import version
import io
import json
from pathlib import Path
import shlex
import subprocess
import sys
import tempfile
from typing import Any

import yaml

from lit_distill.cli.app import DistillCLI
from lit_distill.datamodules.from_files import write_json


class Stage:
    """One run of ``fit`` among several, in a folder that is named after all that it is made of.

    So it need not run again while that is the same, goes on where it was cut off, and writes over nothing else. What it
    is made of is checked before anything runs.

    Args:
        output: Where the folder is made.
        name: What the run makes, such as ``"teacher"``.
        config: Its configuration, as ``fit --config`` takes it; epochs and logger come with the stage.
        epochs: Epochs of the run.
        flags: Flags of ``fit`` that the user adds.
        inputs: What else it is made of: digests of images and checkpoints.

    Raises:
        ValueError: If the configuration or a flag is wrong.
    """

    def __init__(
        self, output: Path, name: str, config: Mapping[str, Any], epochs: int, flags: Sequence[str], inputs: str
    ) -> None:
        made_of = [config, epochs, list(flags), inputs, version("lit-distill")]
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:8]
        self.name, self.epochs, self.flags = name, epochs, list(flags)
        self.folder = output / f"{name}-{digest}"
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
        runs = sorted(self.folder.glob("version_*"), key=lambda run: int(run.name.rpartition("_")[2]), reverse=True)
        return next((run / "checkpoints/last.ckpt" for run in runs if (run / "checkpoints/last.ckpt").is_file()), None)

    def run(self, title: str, config: Mapping[str, Any]) -> None:
        """Run it, or what is left of it, in a process of its own.

        Args:
            title: What is printed first.
            config: The configuration, with what earlier stages have made.

        Raises:
            SystemExit: If it fails, or is stopped; it has then said why.
        """
        if self.done:
            print(f"\n{title}: done before, {self.checkpoint}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(self._text(config))
        begun = self.newest()
        print(f"\n{title}" + (f": going on from {begun}" if begun else ""), flush=True)
        # Of a run that goes on, the checkpoint has the configuration and the flags.
        what = ["--ckpt_path", str(begun)] if begun else ["--config", str(self.config), *self.flags]
        command = [sys.executable, "-m", "lit_distill.cli", "fit", *what]
        process = subprocess.Popen(command)  # noqa: S603  # this command line, and the user's own flags
        try:
            code = process.wait()
        except KeyboardInterrupt:  # which the run has had too
            code = process.wait() or 130
        if code:
            if code in (130, -2):
                print("The same command goes on from here.")
            sys.exit(code if code > 0 else 128 - code)
        last = self.newest()
        if last is None:
            raise ValueError(
                f"the {self.name} left no checkpoint in {self.folder}: --trainer.enable_checkpointing=true"
            )
        write_json(self.folder / "done.json", {"checkpoint": str(last.relative_to(self.folder))})

    def _text(self, config: Mapping[str, Any]) -> str:
        logger = {"save_dir": str(self.folder.parent), "name": self.folder.name}
        trainer = {
            "max_epochs": self.epochs,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
        }
        flags = "".join(f" {shlex.quote(flag)}" for flag in self.flags)
        head = f"# Made by lit-distill distill; alone it is run by\n#   lit-distill fit --config {self.config}{flags}\n"
        return head + yaml.safe_dump({**config, "trainer": trainer}, sort_keys=False)

    def _check(self, config: Mapping[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            path = Path(folder, "config.yaml")
            path.write_text(self._text(config))
            try:
                DistillCLI(["fit", "--config", str(path), *self.flags, "--print_config"])
            except SystemExit as end:
                if end.code:
                    raise
