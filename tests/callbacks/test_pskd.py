from typing import Any

import pytest
import torch
from torch.nn import functional as F
from toys import Foreign, toy_loader, trainer, weights

from lit_distill.callbacks import ProgressiveSelfDistillation

EPOCHS = 8


def by_hand(alpha: float) -> Foreign:
    """Kim et al., equation 3: cross-entropy with the softened target, on the same batches and from the same start."""
    module = Foreign()
    optimizer, loader = module.configure_optimizers(), toy_loader()
    past: dict[int, torch.Tensor] = {}
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        now: dict[int, torch.Tensor] = {}
        weight = alpha * (epoch + 1) / EPOCHS
        for x, y, index in loader:
            z, truth = module.net(x), F.one_hot(y, 4).float()
            old = torch.stack([past.get(row, truth[i]) for i, row in enumerate(index.tolist())])
            target = (1 - weight) * truth + weight * old
            loss = -(target * torch.log_softmax(z, dim=1)).sum(dim=1).mean()
            now |= dict(zip(index.tolist(), torch.softmax(z.detach(), dim=1), strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        past = now
    return module


@pytest.mark.parametrize("alpha", [0.3, 0.8, 1.0])
def test_equals_the_loop_written_by_hand(alpha: float) -> None:
    module, run = Foreign(), trainer(max_epochs=EPOCHS, callbacks=ProgressiveSelfDistillation(alpha, dtype="float32"))
    run.fit(module, toy_loader(), toy_loader(12, seed=9))
    exact = weights(by_hand(alpha))
    torch.testing.assert_close(weights(module), exact, rtol=1e-5, atol=1e-5)
    assert (weights(by_hand(alpha / 2)) - exact).abs().max() > 1e-3
    torch.testing.assert_close(run.callback_metrics["pskd/weight"], torch.tensor(1 - alpha))
    assert run.callback_metrics["pskd/unrecorded"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1.1"), ({"max_epochs": 0}, "max_epochs must be >= 1, got 0")],
)
def test_refuses_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveSelfDistillation(**arguments)
