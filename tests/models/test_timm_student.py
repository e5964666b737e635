import copy
from typing import Any

import pytest
import timm
from timm.models.eva import Eva
import torch
from torch import nn

from lit_distill import StudentOutput, TimmStudent

# The smallest of each family: those with two heads of timm's, those that get a token, those with one head.
TIMMS_TWO: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2},
    "pit_ti_distilled_224": {},
    "levit_128s": {},
    "levit_conv_128s": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "repvit_m0_9": {"img_size": 64},
    "swiftformer_xs": {"img_size": 64},
}
TOKEN = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "deit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2},  # registers and a class token
    "vit_medium_patch16_reg4_gap_256": {"img_size": 32, "depth": 2},  # registers alone, pooled, normed after pooling
    "vit_base_patch16_siglip_224": {"img_size": 32, "depth": 1, "embed_dim": 192, "num_heads": 3},  # attention pooling
    "vit_tiny_r_s16_p8_224": {"img_size": 64},  # a convolutional stem
    "vit_small_patch16_dinov3": {"img_size": 32, "depth": 2},  # rotary positions
    "vit_small_patch16_rope_mixed_224": {"img_size": 32, "depth": 2},  # of their own in every block
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
}
ONE = (
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convnext_atto",
    "crossvit_tiny_240",
    "densenet121",
    "edgenext_xx_small",
    "efficientnet_b0",
    "fastvit_t8",
    "gcvit_xxtiny",
    "mambaout_femto",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnety_002",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
    "xcit_nano_12_p16_224",
)
SMALL: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 192, "num_heads": 3},
    "convnext_atto": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "mixer_s32_224": {"img_size": 64},
    "regnety_002": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 48},
}
FAMILIES = [*TIMMS_TWO.items(), *TOKEN.items(), *((name, SMALL.get(name, {})) for name in ONE)]
# Of the families with one head, which all take the same way, one of each kind is in the fast tests.
FAST = {"beit_base_patch16_224", "convnext_atto", "mixer_s32_224", "regnety_002", "swin_tiny_patch4_window7_224"}


def make(name: str, **kwargs: Any) -> tuple[TimmStudent, torch.Tensor]:
    if not timm.is_model(name) or (name.startswith("eva") and not hasattr(Eva(depth=0), "norm_pre")):
        pytest.skip(f"timm {timm.__version__} is too old for {name}")
    torch.manual_seed(0)
    student = TimmStudent(name, num_classes=7, **kwargs)
    assert student.pixels.input_size is not None
    return student, torch.rand(2, kwargs.get("in_chans", 3), *student.pixels.input_size)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        pytest.param(name, args, marks=pytest.mark.slow if name in ONE and name not in FAST else ())
        for name, args in FAMILIES
    ],
)
def test_every_family_is_a_student(name: str, args: dict[str, Any]) -> None:
    student, image = make(name, **args)
    with torch.no_grad():  # the last scale of a residual branch often starts at zero, which would hide the branch
        for parameter in student.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    output = student(image)
    heads = StudentOutput.of(output)
    (heads.logits * torch.randn(7)).sum().backward(retain_graph=True)
    first = {key: p.grad.clone() for key, p in student.named_parameters() if p.grad is not None}
    (heads.distill_logits * torch.randn(7)).sum().backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    two = name in TIMMS_TWO or name in TOKEN
    assert isinstance(output, StudentOutput) == two
    assert heads.logits.shape == heads.distill_logits.shape == (2, 7)
    assert torch.equal(*heads.heads) != two
    if two:  # each head has parameters that the other knows nothing of
        assert any(not first[key].any() if key in first else True for key, _ in student.named_parameters())

    student.eval()
    output = student(image)
    assert isinstance(output, StudentOutput) == two
    again, _ = make(name, **args)
    again.load_state_dict(student.state_dict())
    for ours, theirs in zip(StudentOutput.of(output).heads, StudentOutput.of(again.eval()(image)).heads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "args"), TOKEN.items())
def test_the_token_is_read_by_the_distillation_head_and_leaves_the_rest_of_timm_alone(name: str, args: Any) -> None:
    student, image = make(name, **args)
    student.eval()
    before = student(image)
    with torch.no_grad():
        token = student.model.norm_pre.distillation_token
        token.add_(torch.randn_like(token))
    after = student(image)
    assert (before.distill_logits - after.distill_logits).abs().max() > 1e-4
    # With a token that is orthogonal to every key the class head would be timm's own; without token it is.
    plain = TimmStudent(name, num_classes=7, distillation_token=False, **args).eval()
    assert isinstance(plain(image), torch.Tensor)
    network = timm.create_model(name, num_classes=7, **args).eval()
    plain.model.load_state_dict(network.state_dict())
    torch.testing.assert_close(plain(image), network(plain.pixels(image)))


def test_copies_have_a_token_of_their_own() -> None:
    student, image = make("vit_tiny_patch16_224", img_size=32)
    student.eval()
    other = copy.deepcopy(student)
    before = student(image).distill_logits
    with torch.no_grad():
        other.model.norm_pre.distillation_token.add_(1.0)
    assert torch.equal(student(image).distill_logits, before)
    assert not torch.allclose(other(image).distill_logits, before)


def test_mode_changes_all_but_the_switch_between_timms_heads() -> None:
    student, _ = make("deit_tiny_distilled_patch16_224")
    student.eval()
    assert [name for name, module in student.named_modules() if module.training] == ["model"]
    student.train()
    assert all(module.training for module in student.modules())


def test_options_reach_timm() -> None:
    student, image = make(
        "vit_tiny_patch16_224",
        img_size=(32, 48),
        patch_size=8,
        in_chans=1,
        drop_path_rate=0.5,
        mean=[0.5],
        std=[0.25],
        num_heads=4,
    )
    assert image.shape == (2, 1, 32, 48)
    assert student.model.patch_embed.grid_size == (4, 6)
    assert student.model.blocks[0].attn.num_heads == 4
    assert student.model.blocks[-1].drop_path1.drop_prob == 0.5
    assert student.pixels.mean.flatten().tolist() == [0.5]
    assert student(torch.rand(2, 1, 64, 64)).logits.shape == (2, 7)  # images of another size are resized
    assert student.no_weight_decay() >= {
        "model.cls_token",
        "model.pos_embed",
        "model.norm_pre.distillation_token",
    }


def test_statistics_and_size_are_timms_and_a_size_is_not_forced_on_a_convnet() -> None:
    student, _ = make("resnet18")
    config = timm.get_pretrained_cfg("resnet18")
    assert student.pixels.mean.flatten().tolist() == pytest.approx(config.mean)
    assert student.pixels.input_size == [224, 224]
    student, image = make("resnet18", img_size=32)
    assert image.shape == (2, 3, 32, 32)
    assert student(image).shape == (2, 7)


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32)
    path = tmp_path_factory.mktemp("weights") / "vit.pt"
    torch.save(model.state_dict(), path)
    return model, path


def test_weights_of_a_file_with_a_new_head_and_at_another_size(small_vit: Any) -> None:
    model, path = small_vit
    student = TimmStudent("vit_tiny_patch16_224", 5, weights=path, img_size=32, distillation_token=False).eval()
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(student(image), model.eval()(student.pixels(image)))
    student = TimmStudent("vit_tiny_patch16_224", 7, weights=path, img_size=64)
    assert student(torch.rand(2, 3, 64, 64)).logits.shape == (2, 7)
    assert torch.equal(student.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    resampled = timm.layers.resample_abs_pos_embed(model.pos_embed, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(student.model.pos_embed, nn.Parameter(resampled))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("vit_xsmall_patch16_clip_224", {"depth": 2}),  # a layer norm where the token goes in
        ("vit_small_patch16_dinov3", {"depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}),
        ("resnet10t", {}),
    ],
)
def test_a_student_goes_on_at_another_size_with_its_token(tmp_path, name: str, args: dict[str, Any]) -> None:
    first, image = make(name, img_size=32, **args)
    torch.save(
        {"state_dict": {f"student.{key}": value for key, value in first.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    same = TimmStudent(name, 7, weights=tmp_path / "a.ckpt", img_size=32, **args)
    for ours, theirs in zip(
        StudentOutput.of(same.eval()(image)).heads, StudentOutput.of(first.eval()(image)).heads, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    larger = TimmStudent(name, 7, weights=tmp_path / "a.ckpt", img_size=48, **args)
    fixed = [key for key in larger.state_dict() if "pos_embed" not in key and "rope" not in key]
    assert all(torch.equal(larger.state_dict()[key], first.state_dict()[key]) for key in fixed)
    assert StudentOutput.of(larger(torch.rand(2, 3, 48, 48))).distill_logits.shape == (2, 7)
    other = TimmStudent(name, 3, weights=tmp_path / "a.ckpt", img_size=32, **args)  # other classes: new heads
    assert StudentOutput.of(other(image)).distill_logits.shape == (2, 3)
    token = "model.norm_pre.distillation_token"
    assert token not in first.state_dict() or torch.equal(other.state_dict()[token], first.state_dict()[token])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("vit_tinny_patch16_224", {}, "timm has no model 'vit_tinny_patch16_224': did you mean 'vit_tiny_patch16_224'"),
        ("resnet18", {"weights": True}, "the weights in .* are not for resnet18: "),
        (
            "vit_small_patch16_224",
            {"weights": True},
            "the weights in .* are not for vit_small_patch16_224: size mismatch",
        ),
        ("vit_tiny_patch16_224", {"weights": True, "depth": 6}, "has 12 blocks in the weights, 6 in the network"),
        (
            "vit_tiny_patch16_224",
            {"img_size": 30},
            "of 16 pixels, of which 30 is no multiple; the nearest are 16 and 32",
        ),
        ("vit_tiny_patch16_224", {"colour": 1}, "timm cannot make vit_tiny_patch16_224 with .*colour"),
        ("vit_tiny_patch16_224", {"in_chans": 1}, "was made for 3 channels: give mean and std"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "num_classes must be >= 1, got 0"),
    ],
)
def test_says_what_is_wrong_in_one_line(small_vit: Any, name: str, args: dict[str, Any], message: str) -> None:
    if args.get("weights"):
        args = {**args, "weights": small_vit[1]}
    with pytest.raises(ValueError, match=message) as raised:
        TimmStudent(name, **{"num_classes": 5, **args})
    assert "\n" not in str(raised.value)


def test_laid_out_by_pixel_it_answers_and_learns_the_same() -> None:
    students = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        students.append(TimmStudent("resnet10t", 7, img_size=32, channels_last=channels_last).double())
    kernels = [weight for weight in students[1].parameters() if weight.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    image = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    outputs = [student(image) for student in students]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    plain, by_pixel = ([weight.grad for weight in student.parameters()] for student in students)
    torch.testing.assert_close(by_pixel, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*TOKEN, "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"])
def test_in_bfloat16_on_a_cpu_attention_is_computed_in_steps(name) -> None:
    torch.manual_seed(0)
    student = TimmStudent(name, 3, **({**TOKEN, **TIMMS_TWO}.get(name) or {"img_size": 32, "depth": 2})).eval()
    fused = [module for module in student.modules() if getattr(module, "fused_attn", False)]
    assert fused
    image = torch.rand(2, 3, *student.pixels.input_size)
    exact = StudentOutput.of(student(image)).logits
    assert all(module.fused_attn for module in fused)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = StudentOutput.of(student(image)).logits.float()
    assert not any(module.fused_attn for module in fused)
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max() + 0.01
    with torch.autocast("cpu", torch.bfloat16):  # a copy has a choice of its own
        twin = copy.deepcopy(student)
        assert torch.equal(StudentOutput.of(twin(image)).logits.float(), rounded)
    assert torch.equal(StudentOutput.of(student(image)).logits, exact)
    assert all(module.fused_attn for module in fused)


def test_attention_that_somebody_has_chosen_stays() -> None:
    student = TimmStudent("deit_tiny_distilled_patch16_224", 3, **TIMMS_TWO["deit_tiny_distilled_patch16_224"])
    student.model.blocks[0].attn.fused_attn = False  # to see its weights
    with torch.autocast("cpu", torch.bfloat16):
        student(torch.rand(1, 3, 32, 32))
    student(torch.rand(1, 3, 32, 32))
    assert [block.attn.fused_attn for block in student.model.blocks] == [False, True]
