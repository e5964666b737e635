"""Somebody else's Lightning project, made better by two lines: `IndexedDataset` and `LearningWithRetrospection`.

`YourModule` is an ordinary LightningModule that knows nothing of lit-distill. All that the callback asks of it is a
submodule that computes the loss (here ``self.criterion``) and batches with the samples' rows (``IndexedDataset`` adds
them as a third element).

    python examples/add_to_your_project.py
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lit_distill.callbacks import LearningWithRetrospection
from lit_distill.datamodules import IndexedDataset


class YourModule(LightningModule):
    """A perceptron for the digits, as it might stand in any project."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = nn.CrossEntropyLoss()
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of images and labels; what else is in the batch is not looked at."""
        image, label = batch[0], batch[1]
        loss: Tensor = self.criterion(self.net(image), label)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure accuracy and cross-entropy."""
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        self.log("nll", nn.functional.cross_entropy(logits, batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def run(retrospection: bool, seed: int = 1, epochs: int = 60) -> dict[str, float]:
    """Train on three tenths of the digits with a fifth of the labels drawn anew; return the validation metrics."""
    seed_everything(seed, verbose=False)
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    train, val = train_test_split(range(len(labels)), train_size=0.3, stratify=labels, random_state=1)
    noisy = labels.clone()
    wrong = torch.tensor(train)[torch.rand(len(train)) < 0.2]
    noisy[wrong] = torch.randint(10, (len(wrong),))
    train_set, val_set = TensorDataset(images[train], noisy[train]), TensorDataset(images[val], labels[val])
    callbacks = []
    if retrospection:
        train_set = IndexedDataset(train_set)  # line 1: a batch is now (image, label, index)
        callbacks = [LearningWithRetrospection(interval=5)]  # line 2
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(YourModule(), DataLoader(train_set, 32, shuffle=True), DataLoader(val_set, 512))
    return {name: trainer.callback_metrics[name].item() for name in ("accuracy", "nll")}


if __name__ == "__main__":
    for retrospection in (False, True):
        metrics = run(retrospection)
        print(f"retrospection {retrospection!s:<5}  accuracy {metrics['accuracy']:.2%}  nll {metrics['nll']:.3f}")
