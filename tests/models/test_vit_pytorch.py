"""The networks and the outputs of vit-pytorch's releases; tools/vit_pytorch_outputs.py has made the fixtures."""

from pathlib import Path
import re
from typing import Any

import pytest
from safetensors.torch import load_file
import torch
from torch import nn

from lit_distill import DistillableViT, StudentOutput
from lit_distill.models import FrozenTeacher, load_student
from lit_distill.models.export import export_student
from lit_distill.models.saved import origin_of
from lit_distill.models.vit_pytorch import convert_vit_pytorch, read_arguments

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("vit_pytorch_*.safetensors"))
OLDEST = next(path for path in FIXTURES if "0.6.6_cls_2_wrapper" in path.stem)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights, and the image and the logits beside them."""
    content = load_file(path)
    weights = {name.removeprefix("weights."): value for name, value in content.items() if name.startswith("weights.")}
    return weights, content


def words(path: Path) -> dict[str, Any]:
    """Return the arguments that no weights tell."""
    _, _, release, pool, heads, *_ = path.stem.split("_")
    return {"heads": int(heads), "pool": pool, "attention_scale": "dim" if release == "0.6.6" else "dim_head"}


def assert_answers(student: nn.Module, content: dict[str, torch.Tensor]) -> None:
    output = StudentOutput.of(student.eval()(content["image"]))
    torch.testing.assert_close(output.logits, content["logits"], rtol=1e-5, atol=1e-5)
    if "distill_logits" in content:
        torch.testing.assert_close(output.distill_logits, content["distill_logits"], rtol=1e-5, atol=1e-5)


def test_there_are_fixtures_of_each_generation_and_around_the_change_of_scale() -> None:
    releases = {path.stem.split("_")[2] for path in FIXTURES}
    assert releases == {"0.6.6", "0.6.7", "0.6.8", "1.26.11"}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_network_and_outputs_are_vit_pytorchs(path: Path) -> None:
    weights, content = read(path)
    student = DistillableViT.from_vit_pytorch(weights, **words(path))
    assert_answers(student, content)
    assert (student.distillation_token is not None) == ("distill_logits" in content)
    # The same arguments make a network that loads vit-pytorch's file, and one that loads this network's weights.
    arguments = read_arguments(convert_vit_pytorch(weights), words(path)["heads"]) | words(path)
    assert (arguments["image_size"], arguments["patch_size"], arguments["channels"]) == ((20, 20), (4, 4), 3)
    again = DistillableViT(**arguments)
    again.load_state_dict(student.state_dict())
    assert_answers(again, content)


def test_the_scale_of_the_attention_makes_the_difference() -> None:
    newer = OLDEST.with_name(OLDEST.name.replace("0.6.6", "0.6.7"))
    (weights, content), (same, _) = read(OLDEST), read(newer)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    student = DistillableViT.from_vit_pytorch(weights, heads=2)
    assert_answers(student, read(newer)[1])
    with pytest.raises(AssertionError):
        assert_answers(student, content)
    with pytest.raises(ValueError, match="attention_scale must be 'dim_head' or 'dim', got 'width'"):
        DistillableViT.from_vit_pytorch(weights, heads=2, attention_scale="width")  # type: ignore[arg-type]  # a typo


def test_an_export_and_a_checkpoint_keep_the_network(tmp_path: Path) -> None:
    weights, content = read(OLDEST)
    arguments = read_arguments(convert_vit_pytorch(weights), 2) | words(OLDEST)
    student = DistillableViT.from_vit_pytorch(weights, **words(OLDEST))
    card = {"student": {"class_path": "lit_distill.DistillableViT", "init_args": arguments}}
    export_student(student, tmp_path / "out", card, [3, 20, 20])
    assert_answers(load_student(tmp_path / "out"), content)
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": card}, tmp_path / "x.ckpt")  # as the command line writes it
    assert_answers(load_student(tmp_path / "x.ckpt"), content)
    teacher = FrozenTeacher(str(tmp_path / "out"))
    expected = StudentOutput.of(student(content["image"])).combined("mean_probs")
    torch.testing.assert_close(teacher(content["image"]), expected)
    # It starts another network of its own kind alone.
    origin = origin_of(tmp_path / "out")
    assert origin is not None
    assert origin.attention_scale == "dim"
    start = tmp_path / "out" / "student.safetensors"
    assert_answers(DistillableViT(**arguments, weights=start), content)
    with pytest.raises(ValueError, match="attention_scale must be 'dim', got 'dim_head'"):
        DistillableViT(**arguments | {"attention_scale": "dim_head"}, weights=start)


@pytest.mark.parametrize("path", [path for path in FIXTURES if path.stem.endswith("_vit")], ids=lambda path: path.stem)
def test_weights_without_a_token_need_a_word(path: Path, tmp_path: Path) -> None:
    weights, content = read(path)
    student = DistillableViT.from_vit_pytorch(weights, **words(path), distillation_token=True)
    torch.testing.assert_close(student.eval()(content["image"]).distill_logits.shape, (2, 5))
    student(content["image"]).distill_logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    torch.save(weights, tmp_path / "w.pt")
    arguments = read_arguments(convert_vit_pytorch(weights), words(path)["heads"]) | words(path)
    arguments |= {"distillation_token": True, "weights": tmp_path / "w.pt"}
    with pytest.raises(ValueError, match="the weights have no distillation token: set new_token for a new one"):
        DistillableViT(**arguments)
    assert torch.equal(DistillableViT(**arguments, new_token=True).cls_token, student.cls_token)


def test_weights_with_a_token_need_a_network_with_one() -> None:
    with pytest.raises(ValueError, match="the weights have a distillation token, this network has none"):
        DistillableViT.from_vit_pytorch(read(OLDEST)[0], heads=2, distillation_token=False)


@pytest.mark.parametrize("path", [path for path in FIXTURES if "2_wrapper" in path.stem], ids=lambda path: path.stem)
def test_starts_from_a_file_at_another_size_and_for_other_classes(path: Path, tmp_path: Path) -> None:
    weights, content = read(path)
    torch.save({"epoch": 3, "model": weights}, tmp_path / "w.pt")
    arguments = read_arguments(convert_vit_pytorch(weights), 2) | words(path)
    student = DistillableViT(**arguments, weights=tmp_path / "w.pt")
    assert_answers(student, content)
    arguments |= {"image_size": 40, "num_classes": 9}
    larger = DistillableViT(**arguments, weights=tmp_path / "w.pt")
    assert larger(torch.rand(1, 3, 40, 40)).logits.shape == (1, 9)
    same = DistillableViT.from_vit_pytorch(weights, **words(path), image_size=40, num_classes=9)
    assert torch.equal(same.pos_embedding, larger.pos_embedding)
    assert torch.equal(larger.encoder.layers[0][0].to_qkv.weight, student.encoder.layers[0][0].to_qkv.weight)
    first = student.cls_token.shape[1]
    assert torch.equal(larger.pos_embedding[:, :first], student.pos_embedding[:, :first])
    grid = student.pos_embedding[:, first:].view(5, 5, 8)
    fine = larger.pos_embedding[:, first:].view(10, 10, 8)
    torch.testing.assert_close(fine.mean(dim=(0, 1)), grid.mean(dim=(0, 1)), rtol=0.1, atol=0.1)
    # A checkpoint of a module with the network inside, as a first phase leaves it.
    torch.save({"state_dict": {f"student.{key}": v for key, v in larger.state_dict().items()}}, tmp_path / "own.ckpt")
    back = DistillableViT(**arguments, weights=tmp_path / "own.ckpt")
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(back.eval()(image).logits, larger.eval()(image).logits)
    timms = {"model.cls_token": torch.zeros(1, 1, 8), "model.pos_embed": torch.zeros(1, 26, 8)}
    torch.save({"state_dict": {f"student.{key}": value for key, value in timms.items()}}, tmp_path / "timm.ckpt")
    with pytest.raises(ValueError, match=r"do not fit DistillableViT: keys \d+ missing"):
        DistillableViT(**arguments, weights=tmp_path / "timm.ckpt")


def test_says_with_which_arguments_a_file_fits(tmp_path: Path) -> None:
    weights, _ = read(OLDEST)
    torch.save(weights, tmp_path / "w.pt")
    arguments: dict[str, Any] = {"image_size": 20, "patch_size": 4, "num_classes": 5, "dim": 8, "depth": 3, "heads": 2}
    with pytest.raises(ValueError, match=r"w.pt do not fit DistillableViT: keys .* missing") as refusal:
        DistillableViT(**arguments, mlp_dim=12, weights=tmp_path / "w.pt")
    (line,) = str(refusal.value).split("\n")
    assert "make it with DistillableViT.from_vit_pytorch, or with image_size=(20, 20), patch_size=(4, 4), " in line
    told = dict(re.findall(r"(\w+)=(\([^)]*\)|\w+)", line.partition("or with ")[2]))
    assert {name: told[name] for name in ("dim", "depth", "mlp_dim", "dim_head", "final_norm")} == {
        **{"dim": "8", "depth": "2", "mlp_dim": "12", "dim_head": "6", "final_norm": "False"}
    }


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda w: {k: v for k, v in w.items() if k != "student.mlp_head.1.weight"},
            {},
            "weights lack 'head.1.weight'",
        ),
        (lambda w: w | {"student.mlp_head.1.bias": torch.zeros(7), "x": torch.zeros(1)}, {}, r"1 unexpected \(x\)"),
        (lambda w: nn.Linear(2, 2).state_dict(), {}, "expected the state dict of vit-pytorch's ViT, .* got weight"),
        (lambda w: w, {"heads": 5}, "heads must divide the 12 columns of q, k and v in vit-pytorch's weights, got 5"),
        (lambda w: w, {"channels": 2}, r"25 patches of 48 values, which are no squares of 2 channels: give image_size"),
        (lambda w: w, {"depth": 3}, r"do not fit DistillableViT: encoder.layers has 2 blocks in the weights, 3 in"),
    ],
)
def test_says_what_does_not_fit(change: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillableViT.from_vit_pytorch(change(read(OLDEST)[0]), **{"heads": 2, **arguments})


def test_images_and_patches_that_are_no_squares_need_a_word() -> None:
    weights, _ = read(OLDEST)
    student = DistillableViT.from_vit_pytorch(weights, heads=2, patch_size=(2, 8), image_size=(10, 40))
    assert student(torch.rand(1, 3, 10, 40)).logits.shape == (1, 5)
