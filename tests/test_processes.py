import subprocess
import sys

SCRIPT = """
import atexit, sys
from torch import distributed
from lit_distill.processes import leave_at_exit

atexit.register(lambda: print("at the end:", distributed.is_initialized()))
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
for _ in range(2):
    leave_at_exit()
"""


def test_the_process_group_ends_before_the_process(tmp_path) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "meet")], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "at the end: False", "")
