from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
import torch
from torch import nn

from lit_distill import DistillableViT, StudentOutput

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("vit_pytorch_*.safetensors"))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    everything = load_file(path)
    weights = {
        name.removeprefix("weights."): value for name, value in everything.items() if name.startswith("weights.")
    }
    return weights, everything


def network(path: Path, **kwargs: Any) -> DistillableViT:
    """The network of tools/vit_pytorch_outputs.py."""
    _, _, _, pool, heads, *_ = path.stem.split("_")
    dim_head = 6 if heads == "2" else 8
    return DistillableViT(20, 4, 5, 8, 2, int(heads), 12, dim_head, pool=pool, **kwargs)  # type: ignore[arg-type]


def test_there_are_fixtures_of_both_generations() -> None:
    releases = {path.stem.split("_")[2] for path in FIXTURES}
    assert {release.split(".")[0] for release in releases} == {"0", "1"}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_outputs_are_vit_pytorchs(path: Path) -> None:
    weights, there = read(path)
    student = network(path, distillation_token="distill_logits" in there)
    assert student.load_vit_pytorch(weights) is student
    output = StudentOutput.of(student.eval()(there["image"]))
    torch.testing.assert_close(output.logits, there["logits"], rtol=1e-5, atol=1e-5)
    if "distill_logits" in there:
        torch.testing.assert_close(output.distill_logits, there["distill_logits"], rtol=1e-5, atol=1e-5)
    # Its own state dict brings the layout along, into a network as it is made and back.
    again = network(path, distillation_token="distill_logits" in there)
    again.load_state_dict(student.state_dict())
    for ours, theirs in zip(StudentOutput.of(again.eval()(there["image"])).heads, output.heads, strict=True):
        assert torch.equal(ours, theirs)
    fresh = network(path, distillation_token="distill_logits" in there)
    state = fresh.state_dict()
    student.load_state_dict(state)
    assert student.state_dict().keys() == state.keys()


@pytest.mark.parametrize("path", [path for path in FIXTURES if path.stem.endswith("_vit")], ids=lambda path: path.stem)
def test_weights_without_a_token_need_a_word(path: Path) -> None:
    weights, there = read(path)
    with pytest.raises(ValueError, match="the weights have no distillation token: set new_token for a new one"):
        network(path).load_vit_pytorch(weights)
    student = network(path)
    token, head = student.distillation_token.clone(), student.distillation_head[1].weight.clone()
    student.load_vit_pytorch(weights, new_token=True)
    assert torch.equal(student.distillation_token, token)
    assert torch.equal(student.distillation_head[1].weight, head)
    student.eval()(there["image"]).distill_logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_weights_with_a_token_need_a_network_with_one() -> None:
    path = next(path for path in FIXTURES if path.stem.endswith("_wrapper"))
    with pytest.raises(ValueError, match="the weights have a distillation token, this network has none"):
        network(path, distillation_token=False).load_vit_pytorch(read(path)[0])


def test_starts_from_a_file_at_another_size_and_for_other_classes(tmp_path) -> None:
    path = next(path for path in FIXTURES if path.stem.endswith("2_wrapper"))
    weights, there = read(path)
    torch.save({"epoch": 3, "model": weights}, tmp_path / "w.pt")
    student = network(path, weights=tmp_path / "w.pt").eval()
    torch.testing.assert_close(student(there["image"]).logits, there["logits"], rtol=1e-5, atol=1e-5)
    _, _, _, pool, *_ = path.stem.split("_")
    larger = DistillableViT(40, 4, 9, 8, 2, 2, 12, 6, pool=pool, weights=tmp_path / "w.pt")  # type: ignore[arg-type]
    assert larger(torch.rand(1, 3, 40, 40)).logits.shape == (1, 9)
    assert torch.equal(larger.encoder.layers[0][0].to_qkv.weight, student.encoder.layers[0][0].to_qkv.weight)
    assert torch.equal(larger.pos_embedding[:, :1], student.pos_embedding[:, :1])
    grid = student.pos_embedding[:, 1:].view(5, 5, 8)
    fine = larger.pos_embedding[:, 1:].view(10, 10, 8)
    torch.testing.assert_close(fine.mean(dim=(0, 1)), grid.mean(dim=(0, 1)), rtol=0.1, atol=0.1)
    timms = {"model.cls_token": torch.zeros(1, 1, 8), "model.pos_embed": torch.zeros(1, 26, 8)}
    torch.save({"state_dict": {f"student.{key}": value for key, value in timms.items()}}, tmp_path / "timm.ckpt")
    with pytest.raises(ValueError, match=r"do not fit DistillableViT: keys \d+ missing"):
        network(path, weights=tmp_path / "timm.ckpt")
    # A checkpoint of a module with the network inside, as a first phase leaves it.
    torch.save({"state_dict": {f"student.{key}": v for key, v in larger.state_dict().items()}}, tmp_path / "own.ckpt")
    back = DistillableViT(40, 4, 9, 8, 2, 2, 12, 6, pool=pool, weights=tmp_path / "own.ckpt")  # type: ignore[arg-type]
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(back.eval()(image).logits, larger.eval()(image).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "mlp_head.weight"}, "keys 1 missing"),
        (lambda w: w | {"mlp_head.weight": torch.zeros(7, 8)}, r"of another shape \(head.weight \(7, 8\) instead of"),
        (lambda w: nn.Linear(2, 2).state_dict(), "expected the state dict of vit-pytorch's ViT, .* got weight, bias"),
    ],
)
def test_says_what_does_not_fit(change: Any, message: str) -> None:
    path = next(path for path in FIXTURES if "1.26" in path.stem and path.stem.endswith("cls_2_vit"))
    student = network(path, distillation_token=False)
    with pytest.raises(ValueError, match=message):
        student.load_vit_pytorch(change(read(path)[0]))
