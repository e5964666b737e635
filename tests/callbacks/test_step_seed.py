from typing import Any

import pytest
import torch
from toys import Foreign, toy_loader, trainer

from lit_distill.callbacks import StepSeed
from lit_distill.keys import derive_seed


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


def test_draws_what_torch_draws_after_its_own_seeding() -> None:
    """As in earlier versions: a run that was begun with one of them goes on with the same bits."""
    expected = []
    for epoch in range(2):
        for batch in range(4):
            torch.manual_seed(derive_seed(1, epoch, batch, 0))
            expected.append(torch.rand(()).item())
    assert draws(1) == expected


def test_formats_no_stack_trace_for_a_device_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed did, which took 200 times as long as the seeding itself."""
    module = Draws()
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    traces: list[Any] = []
    monkeypatch.setattr("traceback.format_stack", lambda *args: traces.append(args) or [])
    StepSeed(1).on_train_batch_start(trainer(), module, None, 0)
    assert traces == []


@pytest.mark.parametrize(("device", "initialised"), [("meta", False), ("cpu", True)])
def test_seeds_every_device_where_one_is_used(monkeypatch: pytest.MonkeyPatch, device: str, initialised: bool) -> None:
    seeds: list[int] = []
    module = Draws().to(device)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: initialised)
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    StepSeed(1).on_train_batch_start(trainer(), module, None, 3)
    assert seeds == [derive_seed(1, 0, 3, 0)]


@pytest.mark.gpu
def test_seeds_the_gpu() -> None:
    class OnTheDevice(Draws):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.draws[-1] = torch.rand((), device=self.device).item()
            return loss

    runs = []
    for _ in range(2):
        module = OnTheDevice()
        trainer(max_epochs=2, callbacks=StepSeed(1), accelerator="cuda").fit(module, toy_loader())
        runs.append(module.draws)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 8
