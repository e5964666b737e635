"""Modules and data that several tests use; all of it is made here."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill.datamodules import IndexedDataset, KeyedSampler


class Foreign(LightningModule):
    """A module that knows nothing of this project: a criterion, and batches of (image, target, index)."""

    def __init__(self, features: int = 6, classes: int = 4, label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.criterion(self.net(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def toy_data(samples: int = 30, features: int = 6, classes: int = 4, seed: int = 1) -> TensorDataset:
    """Random features whose labels depend on them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, features, generator=generator)
    targets = (images[:, :classes] + 0.5 * torch.randn(samples, classes, generator=generator)).argmax(dim=1)
    return TensorDataset(images, targets)


def toy_loader(samples: int = 30, batch_size: int = 8, seed: int = 3, **kwargs: Any) -> DataLoader[Any]:
    """A keyed loader with a partial last batch."""
    data = IndexedDataset(toy_data(samples, **kwargs))
    return DataLoader(data, batch_size=batch_size, sampler=KeyedSampler(data, seed))


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(**kwargs: Any) -> Trainer:
    """A trainer that writes and shows nothing."""
    return Trainer(**{**QUIET, **kwargs})
