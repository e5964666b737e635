"""Where outputs go: never into the data."""

from pathlib import Path
from pkgutil import resolve_name
import sys
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lit_distill.datamodules import FilesDataModule


def beside(place: str | Path, root: str | Path | None) -> Path:
    """Return a place for outputs: this one, or the same beside the data folder if this one is in it.

    Args:
        place: A file or a folder, there or not.
        root: The data folder; an archive, or None, has nothing in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos = Path(folder, "photos")
        ...     photos.mkdir()
        ...     beside(photos / "logs", photos) == Path(folder, "logs").resolve(), beside("logs", photos)
        (True, PosixPath('logs'))
    """
    if root is None or not Path(root).is_dir():
        return Path(place)
    inside, folder, here = Path(place).resolve(), Path(root).resolve(), Path.cwd()
    if not inside.is_relative_to(folder):
        return Path(place)
    # As if the command ran beside the data, should it run within.
    as_given = here.is_relative_to(folder) and inside.is_relative_to(here)
    return folder.parent / inside.relative_to(here if as_given else folder)


def keep_out_of_data(config: Any) -> None:
    """Have a run of ``fit`` write beside the data folder what it would write into it, and say so.

    Args:
        config: The run's configuration, which is changed.
    """
    data = config.get("data")
    if data is None or not issubclass(resolve_name(data.class_path), FilesDataModule):
        return
    root = data.init_args.get("root")
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    arguments = [logger.init_args for logger in loggers if hasattr(logger, "init_args")]
    places = [(config.trainer, "default_root_dir"), (config.checkpoint, "dirpath")]
    for holder, name in [*places, *((held, "save_dir") for held in arguments)]:
        place = holder.get(name) or ("." if name == "default_root_dir" else None)
        if place is not None and beside(place, root) != Path(place):
            holder[name] = str(beside(place, root))
            if holder is not config.trainer or not arguments:  # else nothing is written there
                rank_zero_only(print)(f"note: outputs go to {holder[name]}, not into the data", file=sys.stderr)
