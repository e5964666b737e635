"""Stop runs in every way a job ends, go on as the user is told, and compare with runs that nothing stopped.

    python benchmarks/stops.py --kills 40 --fits 24 --seed 0

A trial of ``distill`` starts the command on 30 tiny photos, kills it, the run that it has started, or both at random
moments (SIGTERM, SIGKILL, SIGINT), once or twice, and then lets the same command end; half of the time it begins at
once, while what was killed may still be ending. A trial of ``fit`` stops a run on the digits, with three batches a
gradient accumulation window, by SIGTERM at a random moment, by ``max_time`` or by ``max_steps``, and then runs the
printed line until the run has all its epochs. At the end weights, optimizer, schedule, progress and soft labels must be
the bits of a run that nothing stopped. No process may be left over, no file half-written, no run be noted as done that
is not, and the exit code must be the signal's.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
import json
import os
from pathlib import Path
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from measure import Report, options_of, scaled
import numpy as np
from PIL import Image
import torch

from lit_distill.checkpoint import check_archive

MARK = "LIT_DISTILL_TRIAL"  # in the environment of all processes of a trial
PROGRAM = [sys.executable, "-m", "lit_distill.cli"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
DISTILL = ["--teacher_net=resnet10t", "--teacher_epochs=2", "--epochs=4", "--data.batch_size=4", "--num_threads=1"]
DISTILL += ["--model.student.depth=1", "--retrospection.interval=1", "--trainer.accumulate_grad_batches=2", *QUIET]
FIT = ["--config=digits", "--num_threads=1", "--trainer.max_epochs=12", "--trainer.accumulate_grad_batches=3", *QUIET]
FIT += ["--retrospection.interval=1", "--model.student.dropout=0.1"]
KINDS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT}
PATIENCE = 300.0  # seconds for anything to end


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Name every place where two nested values are not the same bits."""
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [path]
    if isinstance(ours, dict) and ours.keys() == theirs.keys():
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}/{i}")]
    return [] if ours == theirs else [f"{path}: {ours} instead of {theirs}"]


class Trial:
    """A folder and all processes that are started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.found: list[str] = []

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, MARK: str(self.folder)}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*PROGRAM, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def processes(self) -> list[int]:
        """Return the processes of this trial that are alive."""
        mark, numbers = f"{MARK}={self.folder}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    numbers.append(int(entry.name))
            except OSError:
                continue
        return numbers

    def inspect(self) -> None:
        """Note what a stop has left behind that it should not."""
        if not until(lambda: not self.processes(), 60):
            self.found.append("orphan")
            for process in self.processes():
                os.kill(process, signal.SIGKILL)
        for path in self.folder.rglob("*.ckpt"):
            try:
                check_archive(path)
            except ValueError as error:
                self.found.append(f"half-written: {error}")
        for done in self.folder.rglob("done.json"):
            checkpoint = done.parent / json.loads(done.read_text())["checkpoint"]
            epochs = 2 if done.parent.name.startswith("teacher") else 4
            if epochs_of(torch.load(checkpoint, weights_only=True)) != epochs:
                self.found.append(f"wrong done.json: {done}")

    def leftovers(self) -> None:
        """Note what is left of runs that have come to their end."""
        self.inspect()
        names = [str(path.name) for path in self.folder.rglob(".*") if path.name.endswith(".part")]
        names += [str(path.name) for path in self.folder.rglob(".exported-*")]
        self.found += [f"half-written: {name} is left" for name in names]


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def epochs_of(checkpoint: dict[str, Any]) -> int:
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def state(path: Path) -> dict[str, Any]:
    """Return what must not depend on whether the run was stopped."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops")}
    memory = [value for key, value in checkpoint["callbacks"].items() if key.startswith("LearningWithRetrospection")]
    return {**kept, "memory": memory}


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def distilled(folder: Path) -> dict[str, Any]:
    ends = {}
    for done in folder.rglob("done.json"):
        ends[done.parent.name.partition("-")[0]] = state(done.parent / json.loads(done.read_text())["checkpoint"])
    return {**ends, "exported": [path.read_bytes() for path in folder.rglob("student.safetensors")]}


def stopped_distill(
    trial: Trial, arguments: list[str], seconds: float, rng: random.Random, kills: Counter[str]
) -> None:
    """Start the command, kill it or its child at a random moment, and note what is wrong then."""
    kind, target = rng.choice(list(KINDS)), rng.choice(("command", "run", "group"))
    process = trial.start(arguments)
    ended = partial(has_ended, process)
    until(ended, rng.uniform(0, seconds))
    if target == "run":
        until(lambda: ended() or children(process.pid))
    hit = not ended()
    with suppress(ProcessLookupError, IndexError):
        if hit and target == "run":
            os.kill(children(process.pid)[0], KINDS[kind])
        elif hit:
            (os.killpg if target == "group" else os.kill)(process.pid, KINDS[kind])
    if not until(ended):
        trial.found.append(f"{kind} does not end it")
        process.kill()
    code = process.wait()
    if hit and code:
        kills[f"{kind} to the {target}"] += 1
        if code not in {128 + KINDS[kind], -KINDS[kind]}:
            trial.found.append(f"exit code {code} after {kind} to the {target}")
    if rng.random() < 1 / 2:
        trial.inspect()


def stopped_fit(trial: Trial, kind: str, steps: int, seconds: float, rng: random.Random, kills: Counter[str]) -> None:
    """Stop a fit early, and run the printed line until no more is printed."""
    arguments = ["fit", *FIT]
    limits = {
        "max_steps": f"--trainer.max_steps={rng.randrange(1, steps)}",
        "max_time": "--trainer.max_time=00:00:00:01",
    }
    first = [*arguments, *([limits[kind]] if kind in limits else [])]
    for attempt in range(20):
        log_start = len(trial.log()) if attempt else 0
        process = trial.start(arguments if attempt else first)
        if kind == "SIGTERM" and (attempt == 0 or rng.random() < 1 / 3):
            until(partial(has_ended, process), rng.uniform(0, seconds))
            process.terminate()
        code, log = process.wait(PATIENCE), trial.log()[log_start:]
        kills[f"{kind} to fit"] += code in (143, -15) or f"Stopped by {kind}" in log
        if code not in ({0, 143, -15} if kind == "SIGTERM" else {0}):
            trial.found.append(f"exit code {code} after {kind}")
            return
        trial.inspect()
        line = re.search(r"Resume with\n +(.*)", log)
        if line:
            arguments = shlex.split(line[1])[len(PROGRAM) :]
        elif code == 0 and "Stopped" not in log:
            return
    trial.found.append("never ends")


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def last_of(folder: Path) -> Path:
    return max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def make_photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for place, name in enumerate(("bird", "cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = 60 * place + generator.integers(0, 80, (36, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kills", type=int, default=40, help="of distill and its runs")
        parser.add_argument("--fits", type=int, default=24, help="fits that are stopped")

    options = options_of(__doc__, add)
    report = Report(__file__, options, "stop")
    options.kills, options.fits = scaled(options.kills, options), scaled(options.fits, options)
    os.environ["OMP_NUM_THREADS"] = "1"
    rng, kills, mistakes = random.Random(options.seed), Counter[str](), Counter[str]()

    def note(trial: Trial, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        trial.leftovers()
        differing = differences(ours, theirs)
        trial.found += [f"divergence: {differing[:3]}"] if differing else []
        mistakes.update({line.split(":")[0] for line in trial.found})
        if trial.found:
            print(f"{trial.folder.name}: {trial.found}\n{trial.log()[-6000:]}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photos(folder / "photos")
        arguments = ["distill", f"--data.root={folder / 'photos'}", "--output=out", *DISTILL]
        reference, trials = Trial(folder / "distill"), 0
        began = time.monotonic()
        if options.kills and reference.start(arguments).wait():
            raise RuntimeError(reference.log())
        seconds, whole = time.monotonic() - began, distilled(reference.folder)
        while kills.total() < options.kills:
            trial = Trial(folder / f"distill-{trials}")
            for times in range(rng.choice((1, 2))):  # what is left to do after the first is less
                stopped_distill(trial, arguments, 0.8 * seconds / (1 + times), rng, kills)
            if trial.start(arguments).wait(PATIENCE):
                trial.found.append("the same command fails")
                mistakes.update(["the same command fails"])
                print(trial.log(), flush=True)
            else:
                note(trial, distilled(trial.folder), whole)
            trials += 1
            if trials % 5 == 0:
                print(f"{trials} trials of distill, {dict(kills)}, {dict(mistakes)}", flush=True)
        reference = Trial(folder / "fit")
        began = time.monotonic()
        if options.fits and reference.start(["fit", *FIT]).wait():
            raise RuntimeError(reference.log())
        seconds = time.monotonic() - began
        for number in range(options.fits):
            kind = ("SIGTERM", "max_time", "max_steps")[number % 3]
            trial, whole = Trial(folder / f"fit-{number}"), state(last_of(reference.folder))
            stopped_fit(trial, kind, whole["global_step"], seconds, rng, kills)
            note(trial, state(last_of(trial.folder)), whole)
        report.note(f"{trials} trials of distill, {options.fits} of fit")
        for name, count in sorted(kills.items()):
            report.row("stops", name, count=count)
        for name in ("divergence", "orphan", "half-written", "wrong done.json"):
            report.row("faults", name, count=mistakes.pop(name, 0))
        report.row("faults", "other", count=mistakes.total(), which=str(dict(mistakes) or ""))
    report.finish()


if __name__ == "__main__":
    main()
