import torch
from torch import nn
from torch.nn import functional as F

from lit_distill.models.transformer import Attention, FeedForward, Transformer


def test_attention_equals_the_formula() -> None:
    torch.manual_seed(0)
    attention, tokens = Attention(dim=6, heads=2, dim_head=4).eval(), torch.rand(3, 5, 6)
    q, k, v = attention.to_qkv(attention.norm(tokens)).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 4**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., head])
    torch.testing.assert_close(attention(tokens), attention.to_out(torch.cat(heads, dim=2)))


def test_blocks_are_residual_and_end_with_a_norm() -> None:
    torch.manual_seed(0)
    transformer, tokens = Transformer(dim=6, depth=2, heads=2, dim_head=4, mlp_dim=8).eval(), torch.rand(3, 5, 6)
    expected = tokens
    for block in transformer.layers:
        attention, feed_forward = block.children()
        assert isinstance(attention, Attention)
        assert isinstance(feed_forward, FeedForward)
        expected = expected + attention(expected)
        expected = expected + feed_forward(expected)
    assert isinstance(transformer.norm, nn.LayerNorm)
    torch.testing.assert_close(transformer(tokens), F.layer_norm(expected, (6,)))


def test_dropout_draws_in_training_only() -> None:
    transformer, tokens = Transformer(6, 1, 2, 4, 8, dropout=0.5), torch.rand(3, 5, 6)
    assert not torch.equal(transformer(tokens), transformer(tokens))
    transformer.eval()
    assert torch.equal(transformer(tokens), transformer(tokens))
