from typing import Any

import torch
from toys import Foreign, toy_loader, trainer

from lit_distill.callbacks import StepSeed


class Draws(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.draws: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.draws.append(torch.rand(()).item())
        return super().training_step(batch, batch_idx)


def draws(seed: int | None = None, **kwargs: Any) -> list[float]:
    module = Draws()
    torch.rand(kwargs.pop("before", 1))
    trainer(max_epochs=2, callbacks=StepSeed(seed), **kwargs).fit(module, toy_loader(), toy_loader(12))
    return module.draws


def test_a_step_draws_the_same_whatever_came_before() -> None:
    plain = draws(1)
    assert plain == draws(1, before=100, val_check_interval=2, num_sanity_val_steps=2)
    assert len(set(plain)) == len(plain) == 8
    assert not set(plain) & set(draws(2))


def test_the_default_seed_is_the_one_given_to_seed_everything(monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert draws() == draws(1)
