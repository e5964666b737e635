"""Run all benchmarks, one after the other, and print one table.

    python benchmarks/all.py FOLDER              # all that is not done yet; some hours on two cores
    python benchmarks/all.py FOLDER --quick      # a trial at about 1/100 length
    python benchmarks/all.py FOLDER --only loader peers
    python benchmarks/all.py FOLDER --list

FOLDER has CIFAR-10 as image files, ``train/<class>/*`` and ``test/<class>/*``. Each script runs in a process of its own
and writes its figures to its own JSON file; a script whose file is complete is skipped unless ``--fresh`` is given, and
one that was stopped goes on. Run nothing beside them: they measure time. benchmarks/gpu.py has what needs a GPU.
"""

import argparse
import os
from pathlib import Path
import subprocess
import sys
import time

from measure import ROOT, load_report, markdown, options_of

# By name: the script, its arguments beside FOLDER, and whether it takes FOLDER.
SCRIPTS: dict[str, tuple[str, list[str], bool]] = {
    "digits_time": ("digits_time.py", [], False),
    "loader": ("loader.py", ["--threads=2"], True),
    "loader_sizes": ("loader.py", ["--threads=2", "--sizes", "--policies=none"], True),
    "peers": ("peers.py", ["--threads=2"], False),
    "teacher_cache": ("teacher_cache.py", ["--threads=2"], False),
    "retrospection": ("retrospection.py", ["--threads=2"], False),
    "retrospection_targets": ("retrospection.py", ["--targets"], False),
    "memory": ("memory.py", [], False),
    "ranks": ("ranks.py", [], True),
    "students": ("students.py", [], False),
    "shrinking": ("shrinking.py", [], True),
    "served": ("served.py", [], True),
    "stops": ("stops.py", [], False),
    "digits_choices": ("digits_choices.py", [], False),
    "audit": ("audit.py", [], True),
    "cifar10": (
        "cifar10.py",
        ["--images=2000", "--test_images=500", "--teacher_epochs=6", "--epochs=3", "--teacher_size=64", "--interval=1"],
        True,
    ),
}


def file_of(name: str, options: argparse.Namespace) -> Path:
    """Return the file of a script's figures."""
    if options.length == 1:
        return ROOT / "benchmarks" / f"{name}.json"
    return ROOT / "logs" / "benchmarks" / f"{name}-{options.length:g}.json"


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="of CIFAR-10's images")
        parser.add_argument("--only", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS), metavar="NAME")
        parser.add_argument("--fresh", action="store_true", help="measure again what is complete")
        parser.add_argument("--list", action="store_true", help="print the names, and which are complete")

    options = options_of(__doc__, add)
    failed = []
    for name in options.only:
        script, arguments, takes_folder = SCRIPTS[name]
        report = load_report(file_of(name, options))
        complete = report is not None and report["complete"]
        if options.list or (complete and not options.fresh):
            print(f"{name}: {'complete' if complete else 'not done'}", flush=True)
            continue
        first = [str(options.folder.resolve())] if takes_folder else []
        shared = [f"--length={options.length}", f"--seed={options.seed}", "--device=cpu"]
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / script), *first, *arguments, *shared]
        print(f"\n== {name}, {time.strftime('%H:%M:%S')}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}  # -P leaves the script's own folder out
        command.append(f"--output={file_of(name, options)}")
        ended = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if ended.returncode:
            failed.append(name)
            print(f"{name} ended with exit code {ended.returncode}", flush=True)
    if options.list:
        return
    for name in options.only:
        report = load_report(file_of(name, options))
        if report is not None:
            print(
                f"\n## {name}\n\n{report['command']}, {report['date']}, {report['seconds']:.0f} s\n\n{markdown(report)}"
            )
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
