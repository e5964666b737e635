from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file
import timm
import torch
from torch import nn
import torchvision
from torchvision.models import GoogLeNetOutputs
from torchvision.transforms.v2 import functional as tv

from lit_distill import DigitsCNN, DistillableViT, FrozenTeacher, LitDistiller, StudentOutput, load_student
from lit_distill.cli import main
from lit_distill.models.output import Head


def convnet(classes: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4, classes),
    )


def test_is_frozen_in_eval_mode_and_without_a_graph() -> None:
    teacher = FrozenTeacher(convnet())
    buffers = {name: value.clone() for name, value in teacher.named_buffers()}
    for module in (teacher, teacher.train(), teacher):
        logits = module(torch.rand(4, 3, 8, 8, requires_grad=True))
        assert not logits.requires_grad
        teacher.model.train()  # somebody reaches past it
        teacher.model.eval()[1].train()
    teacher(torch.rand(4, 3, 8, 8))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, buffers[name]) for name, value in teacher.named_buffers())


def test_answers_in_float32() -> None:
    teacher = FrozenTeacher(convnet()).bfloat16()
    assert teacher(torch.rand(2, 3, 8, 8).bfloat16()).dtype == torch.float32


def test_two_heads_answer_with_the_mean_of_their_logits() -> None:
    vit = DistillableViT(image_size=8, patch_size=4, num_classes=5, dim=8, depth=1, heads=1, mlp_dim=8)
    teacher, image = FrozenTeacher(vit), torch.rand(2, 3, 8, 8)
    output = StudentOutput.of(vit(image))
    torch.testing.assert_close(teacher(image), (output.logits + output.distill_logits) / 2)


class Returns(nn.Module):
    """Answers as ``form`` packs its logits, as Hugging Face's models and torchvision's with auxiliary heads do."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.net, self.form = convnet(), form

    def forward(self, image: torch.Tensor) -> Any:
        return self.form(self.net(image))


class Output(OrderedDict[str, Any]):
    """Like ``transformers.utils.ModelOutput``."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


FORMS = {
    "mapping": lambda z: {"loss": None, "logits": z, "hidden_states": (z, z)},
    "mapping and object": lambda z: Output(logits=z, hidden_states=None),
    "object": lambda z: SimpleNamespace(logits=z, attentions=None),
    "named tuple": lambda z: GoogLeNetOutputs(z, 2 * z, 3 * z),
    "tuple of one": lambda z: (z,),
    "pair in a mapping": lambda z: {"logits": (z, z)},
    "half": lambda z: {"logits": z.half()},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_logits_are_found_in_what_a_network_returns(form: Any) -> None:
    network = Returns(form)
    teacher, image = FrozenTeacher(network), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(teacher(image), network.net(image), rtol=1e-3, atol=1e-3)
    assert teacher(image).dtype == torch.float32
    student = LitDistiller(Returns(form))
    assert student(image).logits.shape == (2, 5)
    grouped = FrozenTeacher(network, classes=[[0, 1], [2]])
    assert grouped(image).shape == (2, 2)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda z: {"loss": z, "hidden_states": z}, "a dict with loss, hidden_states"),
        (lambda z: {"logits": None}, "a dict with logits"),
        (lambda z: (z, (z, z)), "a tuple of Tensor, tuple"),
        (lambda z: (z, z, z), "a tuple of Tensor, Tensor, Tensor"),
        (lambda z: None, "a NoneType"),
        (lambda z: SimpleNamespace(last_hidden_state=z), "a SimpleNamespace"),
    ],
)
def test_says_what_a_network_returned_instead_of_logits(form: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"the network returned {said}, expected its logits") as error:
        FrozenTeacher(Returns(form))(torch.rand(2, 3, 8, 8))
    assert "\n" not in str(error.value)


def test_weights_of_a_compiled_network_fit_a_plain_one_and_the_other_way_round(tmp_path) -> None:
    source, image = convnet().eval(), torch.rand(2, 3, 8, 8)
    for state in (source.state_dict(), torch.compile(source, backend="eager").state_dict()):
        torch.save(state, tmp_path / "w.pt")
        for network in (convnet(), torch.compile(convnet(), backend="eager")):
            teacher = FrozenTeacher(network, tmp_path / "w.pt")
            torch.testing.assert_close(teacher(image), source(image))


def test_has_its_own_statistics_and_size() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    teacher = FrozenTeacher(flat, mean=[0.5] * 3, std=[0.25] * 3, input_size=4)
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    torch.testing.assert_close(teacher(image), flat(torch.full((1, 3, 4, 4), 2.0)))


def test_loads_local_weights_of_a_module(tmp_path) -> None:
    source, image = convnet().eval(), torch.rand(2, 3, 8, 8)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        torch.testing.assert_close(FrozenTeacher(convnet(), tmp_path / name)(image), source(image))


def test_loads_local_weights_of_a_timm_name_with_their_own_class_count(tmp_path) -> None:
    source = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    teacher = FrozenTeacher("resnet10t", tmp_path / "w.safetensors", input_size=32)
    assert teacher.num_classes == 7
    mean, std = (torch.tensor(source.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(image), source((image - mean) / std))
    # Nobody knows the size that these were trained at; an architecture that takes one size only leaves no choice.
    assert FrozenTeacher("resnet10t", tmp_path / "w.safetensors").pixels.input_size is None
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict(), tmp_path / "vit.safetensors")
    assert FrozenTeacher("vit_tiny_patch16_224", tmp_path / "vit.safetensors").pixels.input_size == [224, 224]


def test_never_makes_up_a_head(tmp_path) -> None:
    save_file(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"num_classes is 3, but the weights of resnet10t are for 7 classes"):
        FrozenTeacher("resnet10t", tmp_path / "w.safetensors", num_classes=3)


def test_says_what_is_wrong(tmp_path) -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnt18': did you mean 'resnet18"):
        FrozenTeacher("resnt18")
    with pytest.raises(ValueError, match="num_classes is 3, but the teacher DigitsCNN has 10"):
        FrozenTeacher(DigitsCNN(), num_classes=3)
    with pytest.raises(ValueError, match="no weights file at"):
        FrozenTeacher(convnet(), tmp_path / "nope.pt")
    with pytest.raises(ValueError, match="model_args go with the name"):
        FrozenTeacher(convnet(), model_args={"in_chans": 1})


def test_without_weights_or_network_a_timm_name_asks_for_a_file(monkeypatch) -> None:
    def offline(*args, **kwargs):
        assert kwargs["pretrained"] is True
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"give a local file as weights .*: no route to host"):
        FrozenTeacher("resnet10t")


def test_images_of_other_channels_are_refused_in_one_line() -> None:
    grey = FrozenTeacher(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5)), mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match="takes images of 1 channels, got 3") as caught:
        grey(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert str(caught.value) == (
        "the teacher Sequential takes images of 1 channels, got 3: read the data with channels=1 (--data.channels=1), "
        "or give a teacher for 3 (timm's: model_args={in_chans: 3})"
    )
    with pytest.raises(ValueError, match="takes images of 3 channels, got 1: read the data with channels=3"):
        FrozenTeacher(nn.Sequential(nn.Conv2d(3, 4, 3)))(torch.zeros(2, 1, 8, 8))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # not of the channels
        FrozenTeacher(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3, 5)))(torch.zeros(2, 3, 8, 8))


def test_a_timm_name_for_other_channels_needs_their_statistics(tmp_path) -> None:
    save_file(timm.create_model("resnet10t", num_classes=4, in_chans=1).state_dict(), tmp_path / "w.safetensors")
    grey: dict[str, Any] = {"weights": tmp_path / "w.safetensors", "model_args": {"in_chans": 1}}
    with pytest.raises(ValueError, match="resnet10t was made for 3 channels: give mean and std for yours"):
        FrozenTeacher("resnet10t", **grey)
    teacher = FrozenTeacher("resnet10t", **grey, mean=[0.3], std=[0.4])
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(teacher(image), teacher.model((image - 0.3) / 0.4))


TORCHVISION = "squeezenet1_1"


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(TORCHVISION, num_classes=6).eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def test_a_torchvision_name_with_a_file(tmp_path, squeezenet: nn.Module) -> None:
    torch.save(squeezenet.state_dict(), tmp_path / "w.pt")
    image = torch.rand(2, 3, 64, 64)
    teacher = FrozenTeacher(f"torchvision.models.{TORCHVISION}", tmp_path / "w.pt")
    assert (teacher.num_classes, teacher.pixels.input_size) == (6, None)
    torch.testing.assert_close(teacher(image), squeezenet(normalised(image)))
    with pytest.raises(ValueError, match="num_classes is 3, but the teacher SqueezeNet has 6"):
        FrozenTeacher(f"torchvision.models.{TORCHVISION}", tmp_path / "w.pt", num_classes=3)


def test_a_torchvision_name_with_torchvisions_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    there, asked = torchvision.models.get_model(TORCHVISION).eval(), []

    def download(url: str, **kwargs: Any) -> Any:
        asked.append((url, kwargs["weights_only"], kwargs["check_hash"]))
        return there.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    image = torch.rand(2, 3, 300, 300)
    expected = there(normalised(tv.resize(image, [224, 224], antialias=True)))
    for name, weights in (
        (f"torchvision.models.{TORCHVISION}", None),
        (f"torchvision.models.{TORCHVISION}", "IMAGENET1K_V1"),
        (TORCHVISION, "SqueezeNet1_1_Weights.IMAGENET1K_V1"),
    ):
        teacher = FrozenTeacher(name, weights)
        assert (teacher.num_classes, teacher.pixels.input_size) == (1000, [224, 224])
        torch.testing.assert_close(teacher(image), expected)
    assert [safely for _, *safely in asked] == [[True, True]] * 3
    with pytest.raises(ValueError, match=r"no weights SqueezeNet1_1_Weights.V9 .*; it has SqueezeNet1_1_W"):
        FrozenTeacher(TORCHVISION, "SqueezeNet1_1_Weights.V9")
    with pytest.raises(ValueError, match="torchvision has no model 'resnt18': did you mean 'resnet18"):
        FrozenTeacher("torchvision.models.resnt18")

    def offline(url: str, **kwargs: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"could not get .*SqueezeNet1_1.* give a local file as weights: no route"):
        FrozenTeacher(TORCHVISION, "SqueezeNet1_1_Weights.IMAGENET1K_V1")


def test_a_dotted_path_with_arguments(tmp_path) -> None:
    source, image = DigitsCNN(width=4).eval(), torch.rand(2, 1, 8, 8)
    torch.save({"net": source.state_dict(), "epoch": 1}, tmp_path / "w.pt")
    teacher = FrozenTeacher("lit_distill.models.DigitsCNN", tmp_path / "w.pt", model_args={"width": 4})
    torch.testing.assert_close(teacher(image), source(image))
    for name, message in (
        ("lit_distill.models.NoSuchNet", "'lit_distill.models.NoSuchNet' is no model of timm and cannot be imported"),
        ("no_such_package.Net", "cannot be imported: No module named 'no_such_package'"),
        ("pathlib.PurePath", "pathlib.PurePath makes a PurePosixPath, expected a torch.nn.Module"),
        ("torch.nn.Linear", "cannot make torch.nn.Linear with no arguments: .*missing 2 required"),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenTeacher(name)


NESTS: list[Any] = [
    lambda state: state,
    lambda state: {"model": state, "epoch": 3},
    lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "arch": "x"},
    lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(5)}},
    lambda state: {"state_dict": {f"student._orig_mod.{k}": v for k, v in state.items()}},
    lambda state: {"model": {k: torch.zeros_like(v) for k, v in state.items()}, "model_ema": state},
    lambda state: {"state_dict": {k: torch.zeros_like(v) for k, v in state.items()}, "state_dict_ema": state},
    lambda state: {"ema": {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(3)}},
    lambda state: {"checkpoint": 1, "model": {"state_dict": state}},
]


@pytest.mark.parametrize("number", range(len(NESTS)))
def test_finds_the_weights_in_any_common_nesting(tmp_path, number: int) -> None:
    torch.manual_seed(3)
    source, image = timm.create_model("resnet10t", num_classes=5).eval(), torch.rand(2, 3, 32, 32)
    torch.save(NESTS[number](source.state_dict()), tmp_path / "w.pt")
    for teacher in (
        FrozenTeacher("resnet10t", tmp_path / "w.pt"),
        FrozenTeacher("timm.models.resnet10t", tmp_path / "w.pt", 5),
        FrozenTeacher(timm.create_model("resnet10t", num_classes=5), tmp_path / "w.pt"),
    ):
        torch.testing.assert_close(teacher(image), source(teacher.pixels(image)))


@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ("--model.distillation=HardDistillation", "mean_probs"),
        pytest.param(
            "--model.distillation=HardDistillation --model.head=mean_logits", "mean_logits", marks=pytest.mark.slow
        ),
        ("--model.distillation=HardDistillation --model.head=distill", "distill"),
        ("--model.distillation=null", "class"),
        ("--model.distillation=null --model.head=distill", "class"),  # which nothing has trained
    ],
)
def test_a_checkpoint_answers_with_the_head_that_was_measured(
    tmp_path, flags: str, answers: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(f"fit --config digits --trainer.max_epochs=1 --trainer.limit_train_batches=2 {flags}".split())
    (path,) = tmp_path.glob("logs/digits/version_0/checkpoints/last.ckpt")
    main(f"export --ckpt_path {path} --output out".split())
    image = torch.rand(3, 1, 8, 8)
    measured = LitDistiller.load_from_checkpoint(path).eval().predict_step(image)
    for file in (path, tmp_path / "out"):
        student = load_student(file)
        assert student.card["head"] == answers  # type: ignore[index]
        torch.testing.assert_close(StudentOutput.of(student(image)).log_probs(answers).exp(), measured)
        torch.testing.assert_close(FrozenTeacher(str(file))(image).softmax(dim=1), measured)
    teacher = FrozenTeacher(str(path))
    assert teacher.num_classes == 10
    assert teacher(torch.rand(2, 1, 12, 12)).shape == (2, 10)  # it knows what size it was trained at
    with pytest.raises(ValueError, match="weights and model_args go with the name of a model"):
        FrozenTeacher(str(path), weights="w.pt")
    if answers == "class":
        with pytest.raises(SystemExit, match="1"):
            main(f"export --ckpt_path {path} --head=mean_probs".split())


def test_a_head_that_is_not_in_the_weights_is_an_error(tmp_path) -> None:
    state = timm.create_model("resnet10t", num_classes=5).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("fc")}, tmp_path / "w.pt")
    for arguments in (("resnet10t", tmp_path / "w.pt"), ("resnet10t", tmp_path / "w.pt", 5)):
        with pytest.raises(ValueError, match=r"the weights in .* are not for resnet10t: Missing key\(s\).*fc"):
            FrozenTeacher(*arguments)
    torch.save(state, tmp_path / "r.pt")
    with pytest.raises(ValueError, match=r"do not fit SqueezeNet: keys \d+ missing"):
        FrozenTeacher(f"torchvision.models.{TORCHVISION}", tmp_path / "r.pt")


def test_groups_of_classes_teach_fewer() -> None:
    model, image = convnet(9), torch.rand(4, 3, 8, 8)
    teacher = FrozenTeacher(model, classes={"cat": [3, 4], "dog": [0, 1, 8]})
    assert teacher.num_classes == 2
    probabilities = torch.softmax(model(image), dim=1)
    sums = torch.stack([probabilities[:, [3, 4]].sum(1), probabilities[:, [0, 1, 8]].sum(1)], dim=1)
    for priors, factors in (
        ({}, [3.0, 2.0]),
        ({"target_prior": "teacher"}, [1.0, 1.0]),
        ({"teacher_prior": [*range(1, 10)], "target_prior": {"dog": 1, "cat": 4}}, [4 / 9, 1 / 12]),
    ):
        expected = sums * torch.tensor(factors)
        teacher = FrozenTeacher(model, classes={"cat": "3-4", "dog": [0, 1, 8]}, **priors)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.softmax(teacher(image), 1), expected / expected.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"dog names class 9, but the teacher has classes 0..8"):
        FrozenTeacher(convnet(9), classes={"cat": [0], "dog": [9]})


def test_a_prior_without_groups_is_of_each_class() -> None:
    model, image = convnet(3).eval(), torch.rand(4, 3, 8, 8)
    expected = torch.softmax(model(image), dim=1) * torch.tensor([2.0, 1.0, 1.0])
    teacher = FrozenTeacher(model, target_prior=[2, 1, 1])
    torch.testing.assert_close(torch.softmax(teacher(image), 1), expected / expected.sum(1, keepdim=True))
    assert FrozenTeacher(model).grouping() == {}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_computes_in_its_own_precision_whatever_the_module_does(
    precision: Any, dtype: Any, channels_last: bool
) -> None:
    torch.manual_seed(0)
    model, image = convnet(), torch.rand(4, 3, 8, 8)
    exact = model.eval()(image)
    teacher, seen = FrozenTeacher(model, precision=precision, channels_last=channels_last), []
    model[0].register_forward_hook(lambda module, args, out: seen.append((out.dtype, args[0].stride()[1] == 1)))
    for moved in (teacher, teacher.bfloat16(), teacher.double(), teacher.float()):
        with torch.autocast("cpu", torch.bfloat16):
            logits = moved(image)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, exact, rtol=0, atol=1e-6 if precision == "32" else 0.05)
    assert seen == [(dtype, channels_last)] * 4


def test_a_size_that_the_network_cannot_take_is_found_out_at_once(tmp_path) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 16, 5))
    FrozenTeacher(flat, input_size=4)
    with pytest.raises(ValueError, match=r"the teacher Sequential cannot take images of 5x5 pixels: .*mat1 and mat2"):
        FrozenTeacher(flat, input_size=5)
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="patches of 16 pixels, of which 100 is no multiple"):
        FrozenTeacher("vit_tiny_patch16_224", tmp_path / "vit.safetensors", input_size=100)
    for size in ({"input_size": 256}, {"model_args": {"img_size": 256}}, {"model_args": {"img_size": [256, 256]}}):
        teacher = FrozenTeacher("vit_tiny_patch16_224", tmp_path / "vit.safetensors", **size)
        assert teacher.pixels.input_size == [256, 256]
    larger = FrozenTeacher("vit_tiny_patch16_224", tmp_path / "vit.safetensors", input_size=256)
    assert larger(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ValueError, match="precision must be None, '32', 'bf16' or 'fp16', got 'half'"):
        FrozenTeacher(flat, precision="half")  # type: ignore[arg-type]
