from typing import Any

import pytest
import torch
from torch.nn import functional as F
from toys import Foreign, toy_loader, trainer, weights

from lit_distill.callbacks import SelfAdaptiveTraining

EPOCHS = 8


def by_hand(start: int, momentum: float) -> Foreign:
    """Huang et al., Algorithm 1, on the same batches and from the same start."""
    module = Foreign()
    optimizer, loader = module.configure_optimizers(), toy_loader()
    targets: dict[int, torch.Tensor] = {}
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for x, y, index in loader:
            z = module.net(x)
            if epoch < start:
                loss = F.cross_entropy(z, y)
            else:
                for i, row in enumerate(index.tolist()):
                    before = targets.get(row, F.one_hot(y[i], 4).float())
                    targets[row] = momentum * before + (1 - momentum) * torch.softmax(z[i].detach(), dim=0)
                t = torch.stack([targets[row] for row in index.tolist()])
                w = t.max(dim=1).values
                w = w * len(w) / w.sum()
                loss = -(w * (t * torch.log_softmax(z, dim=1)).sum(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


@pytest.mark.parametrize(("start", "momentum"), [(0, 0.9), (3, 0.9), (3, 0.5), (EPOCHS, 0.9)])
def test_equals_the_loop_written_by_hand(start: int, momentum: float) -> None:
    module, callback = Foreign(), SelfAdaptiveTraining(start, momentum, dtype="float32")
    run = trainer(max_epochs=EPOCHS, callbacks=callback)
    run.fit(module, toy_loader(), toy_loader(12, seed=9))
    torch.testing.assert_close(weights(module), weights(by_hand(start, momentum)), rtol=1e-5, atol=1e-5)
    if start < EPOCHS:
        assert (weights(by_hand(EPOCHS, momentum)) - weights(module)).abs().max() > 1e-2
        assert run.callback_metrics["self_adaptive/unrecorded"] == 0


def test_says_when_it_begins_too_late(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(max_epochs=2, callbacks=SelfAdaptiveTraining()).fit(Foreign(), toy_loader())
    assert "SelfAdaptiveTraining has no effect: its start 60 is not below the run's 2 epochs" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"start": -1}, "start must be >= 0, got -1"), ({"momentum": 2.0}, r"momentum must be in \[0, 1\], got 2.0")],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfAdaptiveTraining(**arguments)
