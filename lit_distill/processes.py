"""The end of a run of several processes."""

import atexit

from torch import distributed


def leave_at_exit() -> None:
    """Have this process leave its process group before the interpreter ends; once, however often it is called.

    Lightning does so for NCCL alone. A group of gloo that is still there has running threads, which the interpreter's
    end may run into: "terminate called without an active exception".
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
