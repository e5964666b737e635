"""Keep outputs out of the data."""

from pathlib import Path
from pkgutil import resolve_name
import sys

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from lit_distill.cli.changes import as_list
from lit_distill.datamodules import FilesDataModule


def beside(place: str | Path, root: str | Path | None) -> Path:
    """Return ``place``, or the same place beside the data folder if it is in there.

    Args:
        place: A file or a folder, which need not exist.
        root: The data folder. Nothing is in an archive, or in None.

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
    target, folder, here = Path(place).resolve(), Path(root).resolve(), Path.cwd()
    if not target.is_relative_to(folder):
        return Path(place)
    # A command that runs within the data writes as if it ran beside it.
    runs_within = here.is_relative_to(folder) and target.is_relative_to(here)
    return folder.parent / target.relative_to(here if runs_within else folder)


def keep_out_of_data(config: Namespace) -> None:
    """Move the outputs of ``fit`` that would go into the data folder beside it, and say so.

    Args:
        config: The run's configuration, which is changed.
    """
    if not issubclass(resolve_name(config.data.class_path), FilesDataModule):
        return
    root = config.data.init_args.get("root")
    config.trainer.default_root_dir = config.trainer.default_root_dir or "."
    places = [(config.checkpoint, "dirpath"), (config.trainer, "default_root_dir")]
    places += [(getattr(logger, "init_args", {}), "save_dir") for logger in as_list(config.trainer.logger)]
    for holder, name in places:
        place = holder.get(name)
        if place is not None and beside(place, root) != Path(place):
            holder[name] = str(beside(place, root))
            rank_zero_only(print)(f"note: outputs go to {holder[name]}, not into the data", file=sys.stderr)
