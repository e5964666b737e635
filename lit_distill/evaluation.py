"""Validation and test: the metrics over all loaders together, and over each of several loaders alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from lit_distill.metrics import DistillationMetrics
from lit_distill.models.output import Head, StudentOutput
from lit_distill.padding import SampleCounter


class Evaluation(nn.Module):
    """Measure a student in validation or in test, each sample once, whatever the number of ranks.

    Args:
        stage: ``"val"`` or ``"test"``, what the metrics' names begin with.
        teacher: Whether there is a teacher.
        head: The head that predicts.
    """

    def __init__(self, stage: str, teacher: bool, head: Head) -> None:
        super().__init__()
        self.stage = stage
        self.together = DistillationMetrics(teacher, head, prefix=f"{stage}/")
        self.by_loader = nn.ModuleList()
        self._counter = SampleCounter()

    def update(
        self,
        trainer: Trainer | None,
        output: StudentOutput,
        teacher_logits: Tensor | None,
        target: Tensor,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take in a batch of one of the trainer's loaders."""
        loaders = loaders_of(trainer, self.stage)
        if len(loaders) > 1:
            self._prepare(len(loaders))
        count = self._counter.count(loaders[dataloader_idx], batch_idx, len(target), dataloader_idx)
        counted = StudentOutput(output.logits[:count], output.distill_logits[:count])
        teacher_logits = None if teacher_logits is None else teacher_logits[:count]
        for metrics in (self.together, *self._by_loader()[dataloader_idx : dataloader_idx + 1]):
            metrics.update_with(counted, teacher_logits, target[:count])

    def named_metrics(self) -> Iterator[tuple[str, str, Metric]]:
        """Yield each metric that has measured something: the name to log it under, its path in here, and the metric."""
        alone = ((f"by_loader.{number}", metrics) for number, metrics in enumerate(self._by_loader()))
        for place, metrics in (("together", self.together), *alone):
            for (name, metric), logged_name in zip(metrics.items(keep_base=True), metrics, strict=True):
                if metric.update_called:
                    yield str(logged_name), f"{place}.{name}", metric

    def _by_loader(self) -> list[DistillationMetrics]:
        return list(cast(Iterable[DistillationMetrics], self.by_loader))

    def _prepare(self, count: int) -> None:
        """Make metrics for each of ``count`` loaders, unless there are."""
        if len(self.by_loader) != count:
            copies = [self.together.clone(postfix=f"/dataloader_idx_{number}") for number in range(count)]
            for copy in copies:
                copy.reset()
            self.by_loader = nn.ModuleList(copies).train()  # Lightning warns of modules in eval mode


def loaders_of(trainer: Trainer | None, stage: str) -> list[object]:
    """Return the loaders that a validation (``"val"``) or test reads; a single one may be unknown, None."""
    loaders = getattr(trainer, f"{stage}_dataloaders", None)
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
