import re
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import DistillableViT, StudentOutput
from lit_distill.models import Attention, PatchTokenizer, Transformer


def vit(**kwargs: Any) -> DistillableViT:
    defaults = {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    return DistillableViT(**{**defaults, "dim_head": 8, **kwargs})


def test_gives_two_heads_in_training_and_in_evaluation() -> None:
    model = vit()
    for mode in (True, False):
        output = model.train(mode)(torch.rand(3, 3, 8, 8))
        assert isinstance(output, StudentOutput)
        assert output.logits.shape == output.distill_logits.shape == (3, 5)


def test_without_distillation_token_there_is_one_head() -> None:
    model = vit(distillation_token=False)
    assert model(torch.rand(3, 3, 8, 8)).shape == (3, 5)
    assert not [name for name, _ in model.named_parameters() if "distill" in name]


def test_every_parameter_gets_a_gradient() -> None:
    model = vit()
    output = model(torch.rand(3, 3, 8, 8))
    (output.logits.square().sum() + output.distill_logits.square().sum()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_equals_its_own_description_written_out() -> None:
    """The layout of the design, with nothing but matrix products."""
    model = vit(channels=1, heads=2, dim_head=8, depth=1).eval()
    image = torch.rand(2, 1, 8, 8)
    cells = [image[:, 0, r : r + 4, c : c + 4].reshape(2, 16) for r in (0, 4) for c in (0, 4)]
    tokens = torch.stack(cells, dim=1)
    for layer in list(model.tokenizer)[1:]:
        tokens = layer(tokens)
    tokens = torch.cat([model.cls_token.expand(2, 1, 16), tokens], dim=1) + model.pos_embedding
    tokens = torch.cat([tokens, model.distillation_token.expand(2, 1, 16)], dim=1)
    attention, feed_forward = model.encoder.layers[0]
    q, k, v = attention.to_qkv(attention.norm(tokens)).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    tokens = tokens + attention.to_out(torch.cat(heads, dim=-1))
    tokens = model.encoder.norm(tokens + feed_forward(tokens))
    output = model(image)
    torch.testing.assert_close(output.logits, model.head(tokens[:, 0]))
    torch.testing.assert_close(output.distill_logits, model.distillation_head(tokens[:, -1]))


def test_mean_pooling_reads_class_and_patch_tokens_but_not_the_distillation_token() -> None:
    model = vit(pool="mean", depth=0).eval()
    before = model(torch.rand(1, 3, 8, 8)).logits
    assert model(torch.rand(1, 3, 8, 8)).logits.shape == (1, 5)
    image = torch.rand(1, 3, 8, 8)
    before = model(image).logits
    with torch.no_grad():
        model.distillation_token.add_(1.0)
    assert torch.equal(before, model(image).logits)
    with torch.no_grad():
        model.cls_token.copy_(torch.randn_like(model.cls_token))
    assert not torch.equal(before, model(image).logits)


def test_attention_has_no_bias_on_qkv_and_no_projection_for_one_full_head() -> None:
    attention = Attention(dim=16, heads=3, dim_head=8)
    assert attention.to_qkv.bias is None
    assert attention.to_qkv.out_features == 3 * 3 * 8
    assert isinstance(Attention(dim=16, heads=1, dim_head=16).to_out, nn.Identity)


def test_rectangular_images_and_patches() -> None:
    model = vit(image_size=(8, 12), patch_size=(4, 2))
    assert model.pos_embedding.shape == (1, 1 + 2 * 6, 16)
    assert model(torch.rand(1, 3, 8, 12)).logits.shape == (1, 5)


def test_another_tokenizer_and_encoder_drop_in() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(3 * 8, 16)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.project(image.permute(0, 2, 1, 3).flatten(2))

    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = vit(tokenizer=Rows(), encoder=encoder)
    assert model.pos_embedding.shape == (1, 9, 16)
    assert model(torch.rand(2, 3, 8, 8)).distill_logits.shape == (2, 5)
    with pytest.raises(ValueError, match=r"must return \(B, N, 16\) tokens"):
        vit(tokenizer=nn.Flatten())


def test_normalises_its_own_input() -> None:
    plain = vit().eval()
    own = vit(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    own.load_state_dict(plain.state_dict())
    image = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    expected = plain((image / 255 - mean) / std).logits
    torch.testing.assert_close(own(image).logits, expected)
    torch.testing.assert_close(own(image / 255).logits, expected)


def test_dropout_draws_in_training_only() -> None:
    model, image = vit(dropout=0.5, emb_dropout=0.5), torch.rand(2, 3, 8, 8)
    assert not torch.equal(model(image).logits, model(image).logits)
    model.eval()
    assert torch.equal(model(image).logits, model(image).logits)


def test_runs_in_bfloat16() -> None:
    output = vit(mean=[0.5] * 3, std=[0.5] * 3).bfloat16()(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
    assert output.logits.dtype == torch.bfloat16


def test_patch_tokenizer_and_transformer_keep_their_shapes() -> None:
    tokens = PatchTokenizer(image_size=8, patch_size=2, dim=16)(torch.rand(2, 3, 8, 8))
    assert tokens.shape == (2, 16, 16)
    assert Transformer(dim=16, depth=1, heads=2, dim_head=4, mlp_dim=8)(tokens).shape == tokens.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide image_size, got patch_size 3x3 and image_size 8x8"),
        ({"patch_size": 0}, "patch_size must be one or two numbers >= 1, got 0"),
        ({"image_size": 0}, "image_size must be one or two numbers >= 1, got 0"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"depth": -1}, "depth must be >= 0, got -1"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\], got 1.5"),
        ({"emb_dropout": -0.1}, r"emb_dropout must be in \[0, 1\], got -0.1"),
        ({"pool": "max"}, "pool must be 'cls' or 'mean', got 'max'"),
        ({"position_std": -1.0}, "position_std must be >= 0, got -1.0"),
        ({"mean": [0.5]}, "mean and std go together"),
    ],
)
def test_refuses_what_cannot_be_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**arguments)


def test_names_the_size_it_expects() -> None:
    for shape in ((1, 3, 9, 9), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"\(B, 3, 8, 8\), got " + re.escape(str(shape))):
            vit()(torch.rand(shape))
