import pytest
from safetensors.torch import save_file
import timm
import torch
from torch import nn
from torchvision.models import squeezenet1_0

from lit_distill import DigitsCNN, DistillableViT, FrozenTeacher, StudentOutput
from lit_distill.models import count_classes


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
        assert torch.equal(FrozenTeacher(convnet(), tmp_path / name)(image), source(image))


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
    with pytest.raises(ValueError, match=r"fc.weight \(7, 512\) instead of \(3, 512\)"):
        FrozenTeacher("resnet10t", tmp_path / "w.safetensors", num_classes=3)


def test_says_what_is_wrong(tmp_path) -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnt18'; near it: resnet18"):
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
    with pytest.raises(ValueError, match="give a local file as weights: no route to host"):
        FrozenTeacher("resnet10t")


def test_class_counts_are_read_where_they_can_be() -> None:
    assert count_classes(convnet(5)) == 5
    assert count_classes(timm.create_model("resnet10t", num_classes=7)) == 7
    assert count_classes(nn.Conv2d(3, 4, 1)) is None
    assert FrozenTeacher(squeezenet1_0(num_classes=4)).num_classes == 4
