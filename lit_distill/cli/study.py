"""``lit-distill study``: losses compared over several seeds, from one file to a table."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import redirect_stdout
from contextvars import copy_context
import io
import json
import os
from pathlib import Path
import queue
import re
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import torch
import yaml

from lit_distill.callbacks import TeacherCaching
from lit_distill.checks import check_at_least, counted
from lit_distill.cli.app import DistillCLI
from lit_distill.cli.arguments import command_parser, parse
from lit_distill.cli.errors import one_line
from lit_distill.cli.signals import Stopped, stop_signals
from lit_distill.cli.study_measure import StudyImages, result_of
from lit_distill.cli.study_plan import Description, Plan, Run, check_unequal, find_study, read_plan, with_seed
from lit_distill.cli.study_plot import draw
from lit_distill.cli.study_stage import RunFailedError, StudyStage
from lit_distill.cli.study_table import Figures, are_finite, choose_baseline, write_table
from lit_distill.files import write_atomically
from lit_distill.models.marks import duration
from lit_distill.models.trust import trusting

_FOR_ALL = re.compile(r"--(data|trainer)\.")  # flags that are passed on to all runs
_SECONDS = "--trainer.callbacks+=lit_distill.cli.study_measure.RunSeconds"
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def run(args: Sequence[str]) -> None:
    """Run the command with the arguments that follow ``lit-distill study``."""
    flags = list(filter(_FOR_ALL.match, args))
    loose = [flag for flag in flags if "=" not in flag]
    if loose:
        raise ValueError(f"{loose[0]} is passed on to fit, and needs its value in the same word: {loose[0]}=...")
    parser = command_parser(
        "study",
        "Compare losses: train each row of a study once a seed, with the same budget, and write a table with a paired "
        "test against the baseline. What is done is not done again, what was cut off continues. --data. and --trainer. "
        "flags are passed on to every run.",
    )
    parser.add_argument("study", type=str, help="YAML file of the study, or the name of one of the package's.")
    parser.add_argument("--jobs", type=int | None, help="Runs at once; by default one a GPU, without GPUs one a core.")
    parser.add_argument("--seeds", type=int | list[int] | None, help="Replaces the seeds: a list, or how many.")
    parser.add_argument("--epochs", type=int | None, help="Replaces the epochs of all rows.")
    parser.add_argument("--output", type=Path | None, help="Folder of the table; by default studies/ and the name.")
    parser.add_argument("--runs", type=Path | None, help="Folder of the runs, which studies may share.")
    config = parse(parser, [arg for arg in args if arg not in flags])
    check_at_least(1, jobs=config.jobs)
    path = find_study(config.study)
    trust = [f"--trust={json.dumps(config.trust)}"] if config.trust else []
    plan = read_plan(path, {"seeds": config.seeds, "epochs": config.epochs}, [*map(_absolute, flags), *trust])
    output = (config.output or Path("studies") / path.stem).absolute()
    with trusting(config.trust):
        Study(plan, path.stem, output, config.runs).run(config.jobs or torch.cuda.device_count() or _cores())


class Task(NamedTuple):
    """A row or a teacher with one seed."""

    name: str
    seed: int
    stage: StudyStage
    run: Run
    images: StudyImages

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.name}, seed {self.seed}"

    @property
    def result_file(self) -> Path:
        """Where the result is kept."""
        return self.stage.folder / "result.json"

    def result(self) -> Figures | None:
        """Return its result, or None if there is none of these test images, or none that can be used."""
        try:
            result: Figures = json.loads(self.result_file.read_text())
        except (OSError, ValueError):
            return None
        if not self.stage.done or result.get("test") != self.images.test_digest():
            return None
        # An earlier version kept the scores of a student that has diverged.
        return result if are_finite(result["last"]) and are_finite(result["best"] or {}) else None


class Study:
    """A study in a folder: plans all runs, trains those that are not done, and keeps the table up to date.

    Args:
        plan: The rows, seeds and teachers.
        name: What the study is called.
        output: The folder of the table.
        runs: The folder of the runs, and of the cache beside it; by default in ``output``.

    Raises:
        ValueError: If a row's configuration is wrong, two rows are the same, a seed's split lacks a class, or the
            baseline would be chosen on the test images or without validation.
    """

    def __init__(self, plan: Plan, name: str, output: Path, runs: Path | None = None) -> None:
        self.plan = plan
        self.name = name
        self.output = output
        self.runs = (runs or output / "runs").absolute()
        self._images: dict[str, StudyImages] = {}
        self._failed: dict[str, BaseException] = {}  # by the task's title
        self._teachers = {
            key: self._task(f"teacher {key}", teacher.seed, teacher.run, teacher.epochs)
            for key, teacher in plan.teachers.items()
        }
        described = {row: self._described(row) for row in plan.rows}
        check_unequal(described)
        for row, config in described.items():
            _check_cache(row, config)
        if len(plan.baseline) > 1:
            for row in plan.baseline:
                _check_is_validated(row, described[row]["trainer"], plan.epochs)
        tasks = [
            self._task(row, seed, run, plan.epochs, described[row]["data"])
            for seed in plan.seeds
            for row, run in plan.rows.items()
        ]
        self._are_held_out = all(task.images.is_held_out for task in tasks)
        if len(plan.baseline) > 1 and not self._are_held_out:
            raise ValueError(
                "choose needs validation images other than the test images, which are to choose nothing: set "
                "data.val_fraction for digits or CIFAR, or for photos data.test_root or a folder test"
            )
        # A teacher's students come last of their seed: by then it is trained.
        self.tasks = sorted(tasks, key=lambda task: (plan.seeds.index(task.seed), task.run.teacher is not None))

    def _described(self, row: str) -> Description:
        """Return the whole configuration of a row's first run."""
        try:
            return _resolved(with_seed(self.plan.rows[row], self.plan.seeds[0]), self.plan.epochs)
        except ValueError as error:
            raise ValueError(f"row {row!r}: {one_line(error)}") from error

    def run(self, jobs: int) -> None:
        """Train what is not done, ``jobs`` runs at a time, and write the table.

        Raises:
            SystemExit: If it is stopped.
            ValueError: If runs have failed; the table then has the others.
        """
        rows = f"{counted(len(self.plan.rows), 'row')} of {counted(self.plan.epochs, 'epoch')}"
        seeds, runs = counted(len(self.plan.seeds), "seed"), counted(self._total(), "run")
        results = [(task, task.result()) for task in self._due()]
        done = sum(result is not None for _, result in results)
        cut_off = sum(result is None and task.stage.newest() is not None for task, result in results)
        state = f"{done} of them done" + (f" and {cut_off} cut off" if cut_off else "")
        print(f"{self.name}: {rows}, {seeds}, {runs}, {state}, {jobs} at a time, in {self.output}")
        self._write()
        # Again where the runs have decided which is the baseline, whose other seeds are then due.
        while waiting := [t for t in self._due() if t.title not in self._failed and t.result() is None]:
            self._work(waiting, jobs)
        self._write()
        places = [self.output / "table.md", self.output / "table.json"]
        places += draw(self.output / "table.json", self.output / "plot.png")
        print((self.output / "table.md").read_text())
        print("\n".join(f"{'table' if path.suffix != '.png' else 'plot':<7}{path}" for path in places))
        if self._failed:
            title, error = next(iter(self._failed.items()))
            count = f"{len(self._failed)} of {self._total()}"
            raise ValueError(f"{count} runs have failed, and the table is without them; {title}: {one_line(error)}")

    def _due(self) -> list[Task]:
        """Return all tasks but the later seeds of rows that may still turn out not to be the baseline, or did."""
        candidates = self.plan.baseline if self.plan.chooses_first else []
        chooser = self.plan.seeds[0]
        firsts = {task.name: task for task in self.tasks if task.seed == chooser and task.name in candidates}
        results = {name: {chooser: task.result()} for name, task in firsts.items()}
        remaining = [name for name, task in firsts.items() if task.title not in self._failed]  # what failed has lost
        is_decided = remaining and all(results[name][chooser] for name in remaining)
        chosen = choose_baseline(results, remaining) if is_decided else None
        later = {name for name in candidates if name != chosen}
        tasks = [task for task in self.tasks if task.name not in later or task.seed == chooser]
        return [*self._teachers.values(), *tasks]

    def _total(self) -> int:
        """Return how many runs it has: of the candidates one trains with all seeds, the others with the first."""
        others = len(self.plan.baseline) - 1 if self.plan.chooses_first else 0
        return len(self._teachers) + len(self.tasks) - others * (len(self.plan.seeds) - 1)

    def _work(self, waiting: Sequence[Task], jobs: int) -> None:
        """Run the tasks, and keep the error of each that failed."""
        for task in waiting:
            task.images.test_digest()  # reads them, which is done by processes: no process is forked from a thread
        began, total = time.monotonic(), self._total()
        done = sum(task.result() is not None for task in self._due())
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            slots.put(slot)
        teachers_done = {key: threading.Event() for key in self._teachers}
        stop_signals.listen(StudyStage.processes.forward, hears_all=True)
        # Its threads last until all runs have ended: to the system a thread is the parent that a run may not outlive.
        pool = ThreadPoolExecutor(jobs)
        try:
            running: dict[Future[None], Task] = {
                # A thread begins without the context's values, such as what is trusted.
                pool.submit(copy_context().run, self._do, task, slots, teachers_done): task
                for task in waiting
            }
            for key, task in self._teachers.items():
                if task not in waiting:
                    teachers_done[key].set()
            pending = set(running)
            finished = 0
            while pending:
                ended, pending = wait(pending, timeout=1, return_when="FIRST_COMPLETED")
                for future in ended:
                    task, error = running[future], future.exception()
                    finished += 1
                    if isinstance(error, Stopped):
                        continue
                    if error is not None:
                        self._failed[task.title] = error
                    rest = (time.monotonic() - began) / finished * (total - done - finished)
                    self._report(task, error, done + finished, total, rest)
                    self._write()
        finally:
            pool.shutdown(cancel_futures=True)
            stop_signals.listen(None)
        stop_signals.check()

    def _report(self, task: Task, error: BaseException | None, number: int, total: int, rest: float) -> None:
        result = None if error else task.result()
        outcome = f"failed: {one_line(error)}" if error else ""
        if result is not None:
            images = "test" if task.images.is_held_out else "validation"
            outcome = f"{result['last']['accuracy']:.2%} on the {images} images, {duration(result['seconds'])}"
        left = f"; about {duration(rest)} left" if number < total else ""
        print(f"[{number}/{total}] {task.title}: {outcome}{left}", flush=True)

    def _do(self, task: Task, slots: "queue.SimpleQueue[int]", teachers_done: Mapping[str, threading.Event]) -> None:
        """Train and measure; a row waits for its teacher, which began before it."""
        torch.set_num_threads(1)
        stop_signals.check()
        if task.run.teacher is not None:
            teachers_done[task.run.teacher].wait()
            if self._teachers[task.run.teacher].result() is None:
                stop_signals.check()
                raise RunFailedError(f"teacher {task.run.teacher!r} is not trained")
        slot = slots.get()
        try:
            device = "cpu"
            if torch.cuda.is_available():
                task.stage.gpu = slot % torch.cuda.device_count()
                device = f"cuda:{task.stage.gpu}"
            config = _with_teacher(task.run, self._teachers)
            task.stage.run(task.title, config)
            result = result_of(task.stage.checkpoint, task.images, device)
            with write_atomically(task.result_file) as part:
                part.write_text(json.dumps(result, indent=1))
        finally:
            slots.put(slot)
            for key, teacher in self._teachers.items():
                if teacher is task:
                    teachers_done[key].set()

    def _task(self, name: str, seed: int, run: Run, epochs: int, data: Mapping[str, object] | None = None) -> Task:
        has_own_data = data is None or any(flag.startswith("--data.") and "{seed}" in flag for flag in run.flags)
        run = with_seed(run, seed)
        if has_own_data:
            data = _resolved(run, epochs)["data"]
        images = self._test_images(data, seed)
        made_from = {} if run.teacher is None else {"teacher": self._teachers[run.teacher].stage.folder.name}
        folder_name = f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}-seed{seed}"
        inputs = {"images": images.digest(), **made_from}
        # One folder for all rows and seeds; a row's own, which comes later, wins.
        is_cached = any(flag.startswith("--teacher_cache.") for flag in run.flags)
        folder_flags = [f"--teacher_cache.folder={self.runs.parent / 'teacher_cache'}"] if is_cached else []
        flags = [*folder_flags, *run.flags, _SECONDS, *_QUIET]
        stage = StudyStage(self.runs, folder_name, run.config, epochs, flags, inputs)
        return Task(name, seed, stage, run, images)

    def _test_images(self, data: Mapping[str, object] | None, seed: int) -> StudyImages:
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in self._images:
            try:
                self._images[key] = StudyImages(data or {})
            except ValueError as error:
                raise ValueError(f"seed {seed}: {error}") from error
        return self._images[key]

    def _write(self) -> None:
        due = self._due()
        results = {row: {task.seed: task.result() for task in due if task.name == row} for row in self.plan.rows}
        teachers = {key: task.result() for key, task in self._teachers.items()}
        about = {
            "study": self.name,
            "epochs": self.plan.epochs,
            "seeds": self.plan.seeds,
            "hardware": _hardware(),
            "torch": torch.__version__,
            "held_out": self._are_held_out,
        }
        chooser = self.plan.seeds[0] if self.plan.chooses_first else None
        write_table(self.output, about, results, teachers, self.plan.baseline, chooser)


def _with_teacher(run: Run, teachers: Mapping[str, Task]) -> Description:
    """Return the configuration with the checkpoint of its teacher, which is trained."""
    if run.teacher is None:
        return run.config
    model = run.config["model"]
    arguments = {**model["teacher"]["init_args"], "model": str(teachers[run.teacher].stage.checkpoint)}
    return {**run.config, "model": {**model, "teacher": {**model["teacher"], "init_args": arguments}}}


def _resolved(run: Run, epochs: int) -> Description:
    """Return the whole configuration of a run, as ``fit --print_config`` shows it.

    Raises:
        ValueError: If it is wrong.
    """
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(printed):
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump({**run.config, "trainer": {"max_epochs": epochs}}))
        try:
            DistillCLI(["fit", "--config", str(path), *run.flags, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise
    resolved: Description = yaml.safe_load(printed.getvalue())
    return resolved


def _check_cache(row: str, config: Description) -> None:
    try:
        if config.get("teacher_cache"):
            TeacherCaching(**config["teacher_cache"]["init_args"])
    except ValueError as error:
        raise ValueError(f"row {row!r}: {error}") from error


def _check_is_validated(row: str, trainer: Mapping[str, object], epochs: int) -> None:
    """Raise ``ValueError`` if a row that may become the baseline would never see the validation images."""
    every = trainer["check_val_every_n_epoch"]
    if isinstance(every, int) and every > epochs:
        raise ValueError(
            f"choose needs validation images, which row {row!r} would see every {every} epochs, and it has "
            f"{counted(epochs, 'epoch')}: give --trainer.check_val_every_n_epoch={epochs} or less, or more --epochs"
        )


def _absolute(flag: str) -> str:
    """Return a flag with its file or folder by its whole path: a run continues from any folder."""
    name, _, value = flag.partition("=")
    return f"{name}={Path(value).absolute()}" if name.endswith("root") and Path(value).exists() else flag


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return f"{names[0] if names else sys.platform}, {_cores()} cores, one thread a run"
