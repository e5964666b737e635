from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import trainer, weights

from lit_distill import DistillableViT, FrozenTeacher, HardDistillation, LitDistiller, Teacher, TeacherOutput
from lit_distill.batch import Batch
from lit_distill.callbacks import TeacherCheck
from lit_distill.datamodules import IndexedDataset
from lit_distill.models.fast import FastNetwork
from lit_distill.models.teacher_cache import TeacherCache
from lit_distill.models.variants import PLAIN
from lit_distill.tuning import choices_of, fast_networks, precision_of, restore_choices, tune


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    layers[1].running_var.uniform_(0.5, 2)
    return layers


class Images(torch.utils.data.Dataset[Any]):
    """Noise with the labels that the network gives it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.image = torch.rand(40, 3, 8, 8, generator=generator)
        with torch.no_grad():
            self.target = network().eval()(self.image).argmax(dim=1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image[index], self.target[index]


def loader() -> Any:
    return DataLoader(IndexedDataset(Images()), batch_size=10)


def distiller() -> LitDistiller:
    torch.manual_seed(1)
    student = DistillableViT(8, 4, 4, dim=8, depth=1, heads=1, mlp_dim=8)
    return LitDistiller(student, FrozenTeacher(network()), distillation=HardDistillation(), scheduler=None)


class Pair(Teacher):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = FrozenTeacher(network()), FrozenTeacher(network(), fast=False)

    def forward(self, batch: Batch) -> TeacherOutput:
        return self.first(batch)


def test_finds_the_networks_inside_any_teacher() -> None:
    assert list(fast_networks(Pair())) == ["first", "second"]
    assert fast_networks(nn.Linear(2, 2)) == fast_networks(None) == {}


def test_a_choice_goes_through_a_checkpoint() -> None:
    teacher, again = Pair(), Pair()
    assert choices_of(teacher) == {}
    teacher.first.fast_network.switch_back(torch.device("cpu"))
    restore_choices(again, choices_of(teacher))
    assert again.first.fast_network.chosen == {"variant": str(PLAIN), "device": "cpu"}
    assert again.second.fast_network.chosen == {}
    restore_choices(None, choices_of(teacher))


def test_the_first_batch_of_a_fit_tunes_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, float]] = []

    def note(self: FastNetwork, net: nn.Module, image: Tensor, count: float) -> None:
        self.is_tuned = True
        calls.append((len(image), count))

    monkeypatch.setattr(FastNetwork, "tune", note)
    monkeypatch.setattr("lit_distill.models.fast.is_measured_on", lambda device: True)
    module = distiller()
    trainer(max_epochs=3, callbacks=TeacherCheck()).fit(module, loader(), loader())
    assert calls == [(10, 12)]
    module.teacher = FrozenTeacher(network())
    trainer(max_epochs=-1, max_steps=3).fit(module, loader())
    assert calls == [(10, 12), (10, 3)]
    tune(trainer(), None, None)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have fast networks answer wrongly, though they agreed when they were made."""
    ask = FastNetwork._ask

    def wrong(self: FastNetwork, net: nn.Module, image: Tensor, variant: Any) -> Any:
        output = ask(self, net, image, variant)
        return output.roll(1, dims=1) if variant.folded and isinstance(output, Tensor) else output

    monkeypatch.setattr(FastNetwork, "_ask", wrong)
    monkeypatch.setattr(FastNetwork, "_agrees", lambda *_: True)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_run_and_the_one_that_resumes_it_have_the_same_bits(
    is_broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_broken:
        broken(monkeypatch)
    with (
        nullcontext()
        if not is_broken
        else pytest.warns(
            UserWarning,
            match=r"is right on .* as it runs fastest and on 100\.00% run plainly in float32, which it does from",
        )
    ):
        whole = distiller()
        trainer(max_epochs=2, callbacks=TeacherCheck()).fit(whole, loader(), loader())
        run = trainer(max_epochs=1, callbacks=TeacherCheck())
        run.fit(distiller(), loader(), loader())
    run.save_checkpoint(tmp_path / "half.ckpt")
    assert ("teacher_variants" in torch.load(tmp_path / "half.ckpt", weights_only=True)) == is_broken
    resumed = distiller()
    trainer(max_epochs=2, callbacks=TeacherCheck()).fit(
        resumed, loader(), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert torch.equal(weights(resumed.student), weights(whole.student))
    assert resumed.teacher is not None
    assert resumed.teacher.fast_network is not None
    assert (resumed.teacher.fast_network.variant == PLAIN) == is_broken


def test_the_teacher_is_asked_before_the_student() -> None:
    asked: list[str] = []
    module = distiller()
    assert module.teacher is not None
    module.teacher.register_forward_hook(lambda *_: asked.append("teacher"))
    module.student.register_forward_hook(lambda *_: asked.append("student"))
    trainer(max_epochs=1).fit(module, loader())
    assert asked == ["teacher", "student"] * 4


def test_a_choice_is_the_same_with_a_cache_and_without() -> None:
    teacher = FrozenTeacher(network())
    teacher.fast_network.switch_back(torch.device("cpu"))
    for one, other in ((teacher, TeacherCache(FrozenTeacher(network()))), (TeacherCache(teacher), None)):
        again = FrozenTeacher(network())
        restore_choices(other or again, choices_of(one))
        restored = other.asked if other is not None else again
        assert restored.fast_network.chosen == teacher.fast_network.chosen


@pytest.mark.parametrize(
    ("precision", "arguments", "before", "after"),
    [
        ("32-true", {}, "32-true", "32-true, plainly"),
        ("bf16-mixed", {}, "bf16-mixed", "32-true, plainly"),
        ("bf16-mixed", {"precision": "32"}, "torch.float32", "torch.float32, plainly"),
        ("bf16-mixed", {"fast": False}, "bf16-mixed", "bf16-mixed"),
    ],
)
def test_the_precision_of_its_answers_is_known(
    precision: str, arguments: dict[str, Any], before: str, after: str
) -> None:
    teacher, run = FrozenTeacher(network(), **arguments), trainer(precision=precision)
    runs = fast_networks(teacher).values()
    assert precision_of(run, runs) == before
    teacher.fast_network.switch_back(torch.device("cpu"))
    assert precision_of(run, runs) == after
    assert precision_of(run, ()) == precision
