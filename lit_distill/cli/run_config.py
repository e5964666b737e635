"""Keep the configuration of a run in the folder of its logs and in its checkpoints."""

from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from typing_extensions import override
import yaml

from lit_distill.models.signature import sign
from lit_distill.models.trust import without_weights
from lit_distill.module import LitDistiller

# Where a checkpoint has the configuration of its run, and the user's signature of it.
KEY = "lit_distill_config"
SIGNATURE = "lit_distill_signature"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster; not every build has it


class SaveRunConfig(SaveConfigCallback):
    """Keep the run's configuration in the folder of its logs, and in every checkpoint, also of weights alone."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        # For loggers other than the CSVLogger Lightning would write into save_dir, which all runs share.
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})
        self.text = ""  # the configuration as YAML, from `setup` on: a dump takes a tenth of a second

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.text = self.parser.dump(self.config, skip_none=False)
        super().setup(trainer, pl_module, stage)
        config = yaml.load(self.text, Loader=_LOADER)  # noqa: S506  # a safe one
        config["model"]["student"] = without_weights(config["model"].get("student"))
        config = {key: value for key, value in config.items() if key not in ("ckpt_path", "debug")}
        # The module writes it: Lightning calls no callback for a checkpoint of weights alone.
        cast(LitDistiller, pl_module).kept_in_checkpoints = {KEY: config, SIGNATURE: sign(config)}

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.loggers:  # no folder of this run alone
            return
        folder = folder_of(trainer.loggers[0], trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("config*.yaml")))  # those of the runs that this one continues
        with (folder / (f"config-{number}.yaml" if number else self.config_filename)).open("x") as file:
            file.write(self.text)


def folder_of(logger: Logger, default: str) -> Path:
    """Return the folder of one run of a logger, in which Lightning keeps its checkpoints."""
    if logger.log_dir is not None:
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or default, str(logger.name), version)


def check_folders(trainer: Trainer, resumes: bool) -> None:
    """Refuse a folder with another run's logs, before a logger replaces them.

    Args:
        trainer: Has the loggers, which have written nothing yet.
        resumes: Whether the run continues from a checkpoint. It may then log to the same place, if that adds to it.

    Raises:
        ValueError: If there are such logs.
    """
    # A CSVLogger deletes the metrics of another run.
    logs = ["metrics.csv"] if resumes else ["metrics.csv", "config.yaml"]
    for folder in [folder_of(logger, trainer.default_root_dir) for logger in trainer.loggers]:
        if any((folder / name).exists() for name in logs):
            raise ValueError(
                f"{folder} has the logs of another run, and they are not overwritten: choose another version of the "
                "logger, such as --trainer.logger.version=null for the next free one"
            )
