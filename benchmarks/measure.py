"""What all benchmarks share: options, interleaved runs, intervals, the hardware, and one report.

A script makes its options with `options_of`, and a `Report` from these. It times alternatives with `interleave`, which
runs each of them in turn, in an order drawn anew each round, and compares them with `ratio`, round by round. The report
writes every row to a JSON file as soon as it is there, so the same command goes on where an earlier one was stopped,
and prints one Markdown table for each of its parts.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
import hashlib
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import platform
import random
import resource
import shutil
import sys
import time
from typing import Any, NamedTuple
import warnings

import numpy as np
import torch

from lit_distill.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy", "pillow")


class Timing(NamedTuple):
    """Seconds of a piece of work.

    ``wall`` is the time on the clock, ``thread`` the processor's time in the thread that did the work, ``process`` that
    of all threads of this process. On a shared machine ``thread`` is the steadiest. On a GPU only ``wall`` counts.
    """

    wall: float
    thread: float
    process: float

    def __truediv__(self, count: float) -> "Timing":
        return Timing(*(seconds / count for seconds in self))


class Interval(NamedTuple):
    """A median and its 95 % interval, from ``count`` rounds."""

    median: float
    low: float
    high: float
    count: int


class Clock:
    """Started when made; `read` returns the `Timing` since then. Waits for the device on both occasions."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._synchronize()
        self.start = self._now()

    def read(self) -> Timing:
        self._synchronize()
        return Timing(*(now - start for now, start in zip(self._now(), self.start, strict=True)))

    def _synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def _now(self) -> Timing:
        return Timing(time.perf_counter(), time.thread_time(), time.process_time())


Work = Callable[[], Timing | None]  # returns None if the caller is to time it


def interleave(
    works: Mapping[str, Work], rounds: int, seed: int = 0, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[Timing]]:
    """Run each work once a round, in an order drawn anew each round, and return the timings, round by round.

    Args:
        works: By name. A work that returns a `Timing` has measured itself.
        rounds: That count.
        seed: Of the order.
        device: ``"cpu"`` or ``"cuda"``; on the latter the clock waits for the device.
        warm_up: Rounds before these.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in works}
    order, draws = list(works), random.Random(seed)
    for number in range(warm_up + rounds):
        draws.shuffle(order)
        for name in order:
            clock = Clock(device)
            measured = works[name]()
            timing = clock.read() if measured is None else measured
            if number >= warm_up:
                timings[name].append(timing)
    return timings


def median_of(values: Iterable[float], seed: int = 0) -> Interval:
    """Return the median with a 95 % bootstrap interval."""
    sample = np.asarray(list(values), dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(sample), (2000, len(sample)))
    low, high = np.quantile(np.median(sample[draws], axis=1), [0.025, 0.975])
    return Interval(float(np.median(sample)), float(low), float(high), len(sample))


def ratio(values: Iterable[float], others: Iterable[float]) -> Interval:
    """Return the median over the rounds of value / other; the bootstrap redraws the rounds, both values together."""
    return median_of(value / other for value, other in zip(values, others, strict=True))


def wall(timings: Iterable[Timing]) -> list[float]:
    return [timing.wall for timing in timings]


def thread(timings: Iterable[Timing]) -> list[float]:
    return [timing.thread for timing in timings]


def child_seconds() -> float:
    """Return the processor's time of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def options_of(
    description: str | None,
    add: Callable[[argparse.ArgumentParser], None] | None = None,
    *,
    extra: bool = False,
    arguments: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse a script's options: those that `add` adds to the parser, and those of every script.

    Args:
        description: The script's docstring.
        add: Adds options to the parser.
        extra: Keep unknown options, as ``options.flags``, instead of refusing them.
        arguments: By default those of this process.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, allow_abbrev=False)
    if add is not None:
        add(parser)
    shared = parser.add_argument_group("every benchmark has")
    shared.add_argument("--length", type=float, default=1.0, help="share of the full length, 0..1, by default 1")
    shared.add_argument("--quick", action="store_const", const=0.01, dest="length", help="the same as --length 0.01")
    shared.add_argument("--seed", type=int, default=0, help="of every draw, by default 0")
    shared.add_argument("--threads", type=int, default=1, help="torch's threads, by default 1")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    shared.add_argument("--device", choices=("cpu", "cuda"), default=default_device, help="by default a GPU if any")
    shared.add_argument("--output", type=Path, help="JSON file of the figures; by default one of the script's name")
    options, flags = parser.parse_known_args(arguments)
    if flags and not extra:
        parser.error(f"unknown arguments: {' '.join(flags)}")
    if not 0 < options.length <= 1:
        parser.error(f"--length must be in 0..1, got {options.length}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda, but torch finds no GPU")
    options.flags = flags
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def scaled(count: int, options: argparse.Namespace, least: int = 1) -> int:
    """Return the count at the length that was asked for, at least ``least``."""
    return count if options.length == 1 else max(min(least, count), round(count * options.length))


def hardware() -> dict[str, Any]:
    """Return what a figure depends on beside the code."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")), "")
    facts: dict[str, Any] = {
        "cpu": " ".join(f"{model} {platform.machine()}".split()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu memory (GiB)"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30)
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def folder_of_runs(name: str, options: argparse.Namespace, unlike: Sequence[str]) -> Path:
    """Return the folder below logs of a script's runs, another one for other options than those called ``unlike``."""
    settings = {key: str(value) for key, value in vars(options).items() if key not in (*unlike, "output")}
    digest = hashlib.sha256(json.dumps([settings, str(options.folder.resolve())]).encode()).hexdigest()[:8]
    return Path("logs", name, digest).resolve()


def resumable(main: Callable[[], None]) -> None:
    """Run a script that goes on when it is started again; end with one line if it is stopped or fails."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command goes on from here")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


class Report:
    """The figures of a script: rows in named tables, in a JSON file and as Markdown.

    A row is a mapping from column to number, text, `Interval` or None, under a name that is its first cell. Every row
    is written at once. If the file has rows of the same command that was stopped, they are kept and `once` does not
    measure them again; a file that is complete is begun anew.

    Args:
        script: The script's ``__file__``.
        options: Of `options_of`; the rows of a file with other settings are refused.
        title: What the first column is called.
        place: Settings that name a place on this machine, or do not change a row: they are not compared.

    Raises:
        SystemExit: If the file is of other settings or of another device.
    """

    def __init__(
        self, script: str, options: argparse.Namespace, title: str = "what", place: Sequence[str] = ("folder",)
    ) -> None:
        name = Path(script).stem
        short = ROOT / "logs" / "benchmarks" / f"{name}-{options.length:g}.json"
        self.path: Path = options.output or (Path(script).with_suffix(".json") if options.length == 1 else short)
        self.title = title
        self.began = time.monotonic()
        skipped = {"output", *place}
        settings = {key: _plain(value) for key, value in sorted(vars(options).items()) if key not in skipped}
        self.content: dict[str, Any] = {
            "command": command_line(script, options, place),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "settings": settings,
            "hardware": hardware(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "seconds": 0.0,
            "complete": False,
            "title": title,
            "tables": {},
            "notes": [],
        }
        self._go_on()
        self.seconds_before = self.content["seconds"]
        print(f"$ {self.content['command']}\n{self.heading()}", flush=True)

    def _go_on(self) -> None:
        """Take up the rows of a run that was stopped."""
        earlier = load_report(self.path)
        if earlier is None or earlier["complete"]:
            return
        if earlier["settings"] != self.content["settings"]:
            changed = earlier["settings"] | self.content["settings"]
            pairs = [(key, earlier["settings"].get(key), self.content["settings"].get(key)) for key in sorted(changed)]
            name, then, now = next(pair for pair in pairs if pair[1] != pair[2])
            sys.exit(f"error: {self.path} has rows with {name}={then}, not {now}: give another --output, or remove it")
        for part in ("cpu", "gpu", "torch"):
            then, now = earlier["hardware"].get(part), self.content["hardware"].get(part)
            if then != now:
                sys.exit(f"error: {self.path} has rows of {part} {then}, not {now}: give another --output")
        self.content = {**earlier, "load": self.content["load"]}
        rows = sum(len(table) for table in earlier["tables"].values())
        print(f"{self.path.name} has {rows} rows of {earlier['date']}: going on after these")

    def heading(self) -> str:
        """Return the line of hardware and versions."""
        about = self.content["hardware"]
        place = f"{about['gpu']}, {about['cores']} CPU cores" if "gpu" in about else f"{about['cores']} cores"
        versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "lightning", "timm") if name in about)
        load = self.content["load"][0]
        return (
            f"{about['cpu']}, {place}, {about['threads']} threads, {versions}, "
            f"seed {self.content['settings']['seed']}, {self.content['date']}, load {load} at the start"
        )

    def has(self, table: str, name: str) -> bool:
        return name in self.content["tables"].get(table, {})

    def row(self, table: str, name: str, /, **columns: Any) -> dict[str, Any]:
        """Add a row, or replace it, write the file and print the row."""
        row = {key.replace("_", " "): _plain(value) for key, value in columns.items()}
        self.content["tables"].setdefault(table, {})[name] = row
        self.save()
        print(f"  {table}: {name}: " + ", ".join(f"{key} {cell(value)}" for key, value in row.items()), flush=True)
        return row

    def once(self, table: str, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the row of this name, measured unless the file has it."""
        if self.has(table, name):
            return dict(self.content["tables"][table][name])
        return self.row(table, name, **measure())

    def note(self, text: str) -> None:
        """Keep a line that is printed below the tables, such as what was skipped and why."""
        print(f"  {text}", flush=True)
        if text not in self.content["notes"]:
            self.content["notes"].append(text)
            self.save()

    def save(self) -> None:
        self.content["seconds"] = round(getattr(self, "seconds_before", 0.0) + time.monotonic() - self.began, 1)
        with write_atomically(self.path) as part:
            part.write_text(json.dumps(self.content, indent=1) + "\n")

    def finish(self) -> None:
        """Mark the file as complete and print its tables."""
        self.content["complete"] = True
        self.save()
        print(f"\n{markdown(self.content)}\n\n{self.content['seconds']:.0f} s; figures in {self.path}")


def load_report(path: Path) -> dict[str, Any] | None:
    """Return what a report has written; None if the file is missing or is no report."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "tables" in content and "complete" in content else None


def markdown(content: Mapping[str, Any]) -> str:
    """Return the tables and notes of a report."""
    parts = []
    for name, rows in content["tables"].items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [[content["title"], *columns]] + [
            [key, *(cell(row.get(c)) for c in columns)] for key, row in rows.items()
        ]
        text = [f"| {' | '.join(line)} |" for line in lines]
        parts.append("\n".join([f"**{name}**\n", text[0], "|---" * (1 + len(columns)) + "|", *text[1:]]))
    return "\n\n".join([*parts, *content["notes"]])


def cell(value: Any) -> str:
    """Return a value as the tables show it: four digits, an interval in brackets."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return f"{cell(value['median'])} ({cell(value['low'])} to {cell(value['high'])})"
    if isinstance(value, float):
        digits = 0 if abs(value) >= 1000 else 3 if 0.1 <= abs(value) < 100 else 1
        return f"{value:.{digits}f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"
    return str(value).replace("|", "\\|")


def _plain(value: Any) -> Any:
    """Return the value as JSON has it."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, Path):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def command_line(script: str, options: argparse.Namespace, place: Sequence[str] = ("folder",)) -> str:
    """Return the command, with FOLDER and the like instead of places on this machine."""
    places = {str(getattr(options, name, None)): name.upper() for name in place}
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        value = places.get(value) or (Path(value).name if Path(value).is_absolute() else value)
        word = places.get(word) or (Path(word).name if Path(word).is_absolute() else word)
        words.append(f"{option}={value}" if equals else word)
    return " ".join(["python", f"benchmarks/{Path(script).name}", *words])


def classes_of(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the images of each class of an image folder, sorted."""
    split_folder = folder / split
    folders = sorted(path for path in split_folder.iterdir() if path.is_dir()) if split_folder.is_dir() else []
    if not folders:
        raise ValueError(f"{folder} has no {split}/<class>/: expected train/<class>/* and test/<class>/*")
    return {path.name: sorted(p for p in path.iterdir() if not p.name.startswith(".")) for path in folders}


def part_of(folder: Path, counts: Mapping[str, int | None], into: Path) -> Path:
    """Return a folder of links to as many images of each split, drawn class by class; None means all of them.

    Raises:
        ValueError: If a split is missing, or a class has too few images.
    """
    folder = folder.resolve()
    classes = {split: classes_of(folder, split) for split in counts}
    if set(counts.values()) == {None}:
        return folder
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for split, count in counts.items():
        if count is None:
            (into / split).symlink_to(folder / split)
            continue
        for number, (name, images) in enumerate(classes[split].items()):
            wanted = count // len(classes[split]) + (number < count % len(classes[split]))
            if not 0 < wanted <= len(images):
                raise ValueError(f"expected 1 to {len(images)} images of {name!r} in {split}, got {wanted}")
            (into / split / name).mkdir(parents=True)
            for image in random.Random(f"{split}/{name}").sample(images, wanted):
                (into / split / name / image.name).symlink_to(image)
    return into


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning and warnings silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
