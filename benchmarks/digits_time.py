"""Time the digits job of two installed versions, in turn.

    python benchmarks/digits_time.py BEFORE/bin/python AFTER/bin/python --pairs 3

Each argument is the Python of a virtual environment with one version. A pair is one run of each, in an order that
alternates. The ratios are medians over the pairs. Processor time is the steadier figure on a machine that is shared.
"""

import argparse
from pathlib import Path
import resource
import statistics
import subprocess
import tempfile
import time

JOB = ["-m", "lit_distill.cli", "fit", "--config", "digits", "--trainer.enable_progress_bar=false"]


def run(python: str, flags: list[str]) -> tuple[float, float]:
    """Return the seconds of wall and of processor time (user and system) of a run."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [python, *JOB, f"--trainer.logger.save_dir={folder}", *flags]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = time.perf_counter() - start
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--pairs", type=int, default=3)
    options, flags = parser.parse_known_args()  # others are the job's, such as --trainer.max_epochs=10
    versions = [str(Path(version).absolute()) for version in (options.before, options.after)]
    ratios: list[tuple[float, float]] = []
    for pair in range(options.pairs):
        order = versions if pair % 2 == 0 else versions[::-1]
        seconds = {version: run(version, flags) for version in order}
        (wall, cpu), (wall_after, cpu_after) = (seconds[version] for version in versions)
        ratios.append((wall_after / wall, cpu_after / cpu))
        print(
            f"pair {pair}: wall {wall:.1f} and {wall_after:.1f} s, ratio {ratios[-1][0]:.3f}; "
            f"processor {cpu:.1f} and {cpu_after:.1f} s, ratio {ratios[-1][1]:.3f}",
            flush=True,
        )
    wall_ratio, cpu_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio: wall {wall_ratio:.3f}, processor {cpu_ratio:.3f}")
