from collections.abc import Iterator
import copy
from pathlib import Path
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from toys import in_processes

from lit_distill import FrozenTeacher
from lit_distill.models import choice
from lit_distill.models.fast import FastNetwork, has_fast_bf16
from lit_distill.models.taps import tapped
from lit_distill.models.variants import PLAIN, Variant

FOLDED = Variant(folded=True, channels_last=True)


def network(seed: int = 0, classes: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    for norm in (layers[1], layers[3][1]):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.3, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    return layers.eval().requires_grad_(False)


def both(net: nn.Module) -> tuple[FrozenTeacher, FrozenTeacher]:
    return FrozenTeacher(net), FrozenTeacher(copy.deepcopy(net), fast=False)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_logits_are_those_of_the_plain_network(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(std=0.2)
    fast, plain = both(net)
    image = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    torch.testing.assert_close(fast(image), plain(image), rtol=0, atol=1e-4)
    assert torch.equal(fast(image), fast(image))
    assert torch.equal(FrozenTeacher(copy.deepcopy(net))(image), fast(image))
    is_convolutional = name != "vit_tiny_patch16_224"
    variant = fast.fast_network.variant
    assert (variant.channels_last, variant.folded) == (is_convolutional, name in ("resnet10t", "mobilenetv3_small_050"))
    assert plain.fast_network.variant == Variant()


def test_the_first_answer_is_no_other_than_the_later_ones_and_draws_nothing() -> None:
    teacher, image = FrozenTeacher(network()), torch.rand(2, 3, 8, 8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = teacher(image)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(teacher(image), first)
    with torch.inference_mode():
        assert torch.equal(FrozenTeacher(network())(image), first)


def test_the_network_itself_stays_as_it_is() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    teacher = FrozenTeacher(net)
    teacher(torch.rand(2, 3, 8, 8))
    assert teacher.model is net
    assert list(teacher.state_dict()) == [f"model.{name}" for name in before]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(net[1], nn.BatchNorm2d)
    assert net[0].weight.is_contiguous()


def changed(teacher: FrozenTeacher) -> Iterator[FrozenTeacher]:
    """Change the weights in every way that users do."""
    yield teacher
    with torch.no_grad():
        teacher.model[0].weight.mul_(-1)
    yield teacher
    teacher.model.load_state_dict(network(1).state_dict())
    yield teacher
    teacher.model[6] = network(2)[6]
    yield teacher
    teacher.model[3][0].weight = nn.Parameter(network(3)[3][0].weight, requires_grad=False)
    yield teacher
    teacher.model[0].weight.data = network(4)[0].weight
    yield teacher
    yield teacher.bfloat16().float()
    teacher.model = network(5)
    yield teacher


def test_follows_every_change_of_the_weights() -> None:
    image, answers = torch.rand(2, 3, 8, 8), []
    for teacher in changed(FrozenTeacher(network())):
        answers.append(teacher(image))
        torch.testing.assert_close(answers[-1], teacher.model(image), rtol=0, atol=1e-5)
        assert teacher.fast_network.variant == FOLDED
    assert len({float(answer[0, 0]) for answer in answers}) == len(answers)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "3.0", "3.1", "6"])
def test_a_tapped_layer_keeps_its_value(layer: str) -> None:
    net, image = network(), torch.rand(2, 3, 8, 8)
    with tapped(net, [layer]) as expected:
        logits = net(image)
    teacher = FrozenTeacher(net)
    teacher(image)  # folded before anybody looks
    with tapped(teacher.network, [layer]) as features:
        torch.testing.assert_close(teacher(image), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(features[layer], expected[layer], rtol=0, atol=1e-5)
    assert teacher.fast_network.variant == FOLDED


def test_a_hook_hears_of_every_batch_once() -> None:
    teacher, shapes = FrozenTeacher(network()), []
    teacher.model[2].register_forward_hook(lambda module, args, out: shapes.append(len(out)))
    for count in (3, 4, 3):
        teacher(torch.rand(count, 3, 8, 8))
    assert shapes == [3, 4, 3]


def test_copies_and_pickles_run_fast_as_well() -> None:
    teacher, image = FrozenTeacher(network()), torch.rand(2, 3, 8, 8)
    expected = teacher(image)
    for copied in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(copied(image), expected)
        assert copied.fast_network.variant == FOLDED
        with torch.no_grad():
            copied.model[6].bias.add_(1)
        torch.testing.assert_close(copied(image), expected + 1)
    assert torch.equal(teacher(image), expected)


class Views(nn.Module):
    """Takes no channels_last: it views what a convolution returns."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = network()[:4], nn.Linear(8 * 64, 5).requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        convolved = self.net(image)
        return self.last(convolved.view(len(image), -1))


class Outside(nn.Module):
    """Reaches its BatchNorm where nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.norms = [self.norm]
        self.norm.running_var.fill_(3.0)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.norms[0](self.conv(image)).mean(dim=(2, 3)))


@pytest.mark.parametrize("make", [Views, Outside])
def test_what_does_not_work_is_left_out_without_a_word(make: Any, recwarn: pytest.WarningsRecorder) -> None:
    net = make().eval().requires_grad_(False)
    fast, plain = both(net)
    image = torch.rand(2, 3, 8, 8)
    for _ in range(2):
        torch.testing.assert_close(fast(image), plain(image), rtol=0, atol=1e-5)
    assert fast.fast_network.variant == Variant(folded=make is Views)
    assert not recwarn.list


def test_an_error_later_is_left_to_the_plain_network() -> None:
    fast, plain = both(network())
    fast(torch.rand(2, 3, 8, 8))
    assert fast.fast_network._copy is not None
    fast.fast_network._copy.network[6].forward = lambda _: 1 / 0  # type: ignore[method-assign,assignment]
    image = torch.rand(2, 3, 8, 8)
    for _ in range(2):
        torch.testing.assert_close(fast(image), plain(image))
    with pytest.raises(ValueError, match="takes images of 3 channels, got 4"):
        fast(torch.rand(2, 4, 8, 8))  # the images' own fault


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_precision_that_was_given_is_kept(precision: Any) -> None:
    teacher, dtypes = FrozenTeacher(network(), precision=precision), []
    teacher.model[6].register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        teacher(torch.rand(2, 3, 8, 8))
    assert dtypes == [{"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert {variant.precision for variant in teacher.fast_network.candidates(teacher.model, torch.device("cpu"))} == {
        "own"
    }


def test_plainly_is_in_the_precision_of_the_weights() -> None:
    teacher, image = FrozenTeacher(network()), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        fast = teacher(image)
        assert teacher.fast_network.was_fast
        with teacher.fast_network.plainly():
            assert torch.equal(teacher(image), teacher.model.float()(image).detach()) is False
            plain = teacher(image)
    assert torch.equal(plain, teacher.model(image))
    assert not torch.equal(fast, plain)


def test_switched_back_it_stays_plain_also_where_it_is_loaded() -> None:
    teacher, image = FrozenTeacher(network()), torch.rand(2, 3, 8, 8)
    teacher.fast_network.switch_back(image.device)
    assert torch.equal(teacher(image), teacher.model(image))
    assert (teacher.fast_network.variant, teacher.fast_network.was_fast) == (PLAIN, False)
    assert torch.equal(pickle.loads(pickle.dumps(teacher))(image), teacher.model(image))


def test_compiles_if_it_is_told_to_and_not_where_a_layer_is_tapped(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module, calls = nn.Module.compile, []

    def compile_eagerly(self: nn.Module) -> None:
        calls.append(1)
        compile_module(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    fast, plain = FrozenTeacher(network(), compile=True), FrozenTeacher(network(), fast=False)
    for count in (4, 4, 3):
        image = torch.rand(count, 3, 8, 8)
        torch.testing.assert_close(fast(image), plain(image), rtol=0, atol=1e-5)
    assert fast.fast_network.variant.compiled
    assert calls == [1]
    with tapped(fast.network, ["2"]) as features:
        fast(image)
    assert not fast.fast_network.variant.compiled
    assert features["2"].shape == (3, 8, 8, 8)
    assert not FrozenTeacher(network()).fast_network._wanted(network(), image.device).compiled
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        FrozenTeacher(network(), compile="yes")  # type: ignore[arg-type]


def test_a_compiler_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: nn.Module) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    fast, plain = FrozenTeacher(network(), compile=True), FrozenTeacher(network(), fast=False)
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fast(image), plain(image), rtol=0, atol=1e-5)
    assert fast.fast_network.variant == FOLDED


def test_a_network_that_was_compiled_already_runs_as_it_is() -> None:
    net = network()
    net.compile(backend="eager")
    teacher, image = FrozenTeacher(net), torch.rand(2, 3, 8, 8)
    assert torch.equal(teacher(image), network()(image))
    assert teacher.fast_network.variant == Variant()


def test_what_is_measured_decides_and_long_runs_alone_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"bf16": 0.5, "autocast": 1.1, "trainer": 1.0}
    tried: list[Variant] = []

    def prepare(self: FastNetwork, net: nn.Module, image: Tensor, variant: Variant) -> Any:
        tried.append(variant)
        return net, variant

    def time_of(call: Any, device: torch.device) -> float:
        return seconds[tried[-1].precision] * (0.5 if tried[-1].compiled else 1) * (0.9 if tried[-1].folded else 1)

    monkeypatch.setattr(FastNetwork, "_prepare", prepare)
    monkeypatch.setattr("lit_distill.models.fast.seconds_of_call", time_of)
    monkeypatch.setattr("lit_distill.models.fast.has_fast_bf16", lambda device: True)
    net, image = network(), torch.rand(2, 3, 8, 8)
    assert FastNetwork().measure(net, image, calls=10) == Variant(True, True, "bf16")
    assert not any(variant.compiled for variant in tried)
    assert FastNetwork().measure(net, image, calls=1000) == Variant(True, True, "bf16", compiled=True)
    assert FastNetwork(compile=False).measure(net, image, calls=1e9) == Variant(True, True, "bf16")
    assert FastNetwork(compile=True).measure(net, image, calls=1) == Variant(True, True, "bf16", compiled=True)
    assert FastNetwork(precision=torch.float32).measure(net, image, calls=1) == Variant(True, True, "own")
    seconds["bf16"] = 0.97  # as good as equal: the more exact one is taken
    assert FastNetwork().measure(net, image, calls=10) == Variant(True, True, "trainer")


def test_nothing_is_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastNetwork, "measure", lambda *_: pytest.fail("measured"))
    run, image = FastNetwork(), torch.rand(2, 3, 8, 8)
    run.tune(network(), image, calls=1e9)
    assert (run.chosen, run.is_tuned) == ({}, False)
    assert not has_fast_bf16(image.device)


class Choose:
    """Each rank measures something else; the choices are remembered in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rank: int) -> dict[str, str]:
        measured, run = Variant(folded=True, compiled=rank == 1), FastNetwork()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self.folder / str(rank)))
            patch.setattr("lit_distill.models.fast.is_measured_on", lambda device: True)
            patch.setattr(FastNetwork, "measure", lambda *_: measured)
            run.tune(network(), torch.rand(2, 3, 8, 8), calls=1)
        return run.chosen


def test_all_ranks_take_what_rank_0_has_measured(away: Any, tmp_path: Path) -> None:
    expected = {"variant": str(Variant(folded=True)), "device": "cpu"}
    assert away(in_processes, 2, Choose(tmp_path)) == [expected, expected]


@pytest.mark.gpu
@pytest.mark.parametrize("calls", [1, 1e9])
def test_a_gpu_chooses_once_and_agrees_with_the_plain_network(calls: float, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "_remembered", {})
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=7).cuda().eval()
    plain, image = FrozenTeacher(copy.deepcopy(net), fast=False), torch.rand(16, 3, 96, 96, device="cuda")
    chosen = []
    for _ in range(2):
        run = FastNetwork()
        run.tune(net, image, calls)
        logits = run(net, image)
        assert isinstance(logits, Tensor)
        expected = plain(image)
        assert (logits.float() - expected).abs().max() <= 0.05 * max(1.0, float(expected.abs().max()))
        chosen.append((run.chosen, logits))
        assert str(run.variant) == run.chosen["variant"]
        monkeypatch.setattr(choice, "_remembered", {})  # as in another process
    assert chosen[0][0] == chosen[1][0]
    assert torch.equal(chosen[0][1], chosen[1][1])
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.gpu
def test_a_gpu_runs_every_candidate() -> None:
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=7).cuda().eval().requires_grad_(False)
    image, run = torch.rand(8, 3, 96, 96, device="cuda"), FastNetwork()
    candidates = run.candidates(net, image.device)
    precisions = {"trainer", "autocast", "bf16"} if has_fast_bf16(image.device) else {"trainer"}
    assert {variant.precision for variant in candidates} == precisions
    expected = net(image)
    for variant in [*candidates, candidates[0]._replace(compiled=True)]:
        running, prepared = run._prepare(net, image, variant)
        assert prepared == variant
        logits = run._ask(running, image, variant)
        assert isinstance(logits, Tensor)
        assert (logits.float() - expected).abs().max() <= 0.05 * max(1.0, float(expected.abs().max()))


@pytest.mark.gpu
def test_a_gpu_keeps_the_choice_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastNetwork, "measure", lambda *_: pytest.fail("measured"))
    net, image, run = network().cuda(), torch.rand(2, 3, 8, 8, device="cuda"), FastNetwork()
    run.chosen = {"variant": str(Variant(True, False, "bf16")), "device": torch.cuda.get_device_name()}
    run.tune(net, image, calls=1e9)
    run(net, image)
    assert run.variant == Variant(True, False, "bf16")
