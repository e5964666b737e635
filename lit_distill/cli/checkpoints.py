"""The two checkpoint callbacks of a run: the best epoch, and the last."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override


class BestCheckpoint(ModelCheckpoint):
    """``ModelCheckpoint`` that knows after a resume into a new folder which checkpoint was the best before it.

    The best is chosen when a metric is new; what asks for checkpoints within the epoch is for ``last.ckpt``.
    """

    def __init__(
        self,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        within = {"every_n_train_steps": every_n_train_steps, "train_time_interval": train_time_interval}
        self.within: dict[str, Any] = {name: value for name, value in within.items() if value}
        super().__init__(**kwargs, **(self.within if kwargs.get("monitor") is None else {}))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here, self.dirpath = self.dirpath, state_dict.get("dirpath", self.dirpath)
        super().load_state_dict(state_dict)
        self.dirpath = here


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``; a class of its own, so that its state is told from that of another plain ``ModelCheckpoint``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(filename="last", enable_version_counter=False, **kwargs)
