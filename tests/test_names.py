import pytest

from analysis360.core import Label
from analysis360.errors import FormatError
from analysis360.names import families, label


def test_llama_names():
    """Every tensor of a Llama checkpoint has a module of its own."""
    layer = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")  # fmt: skip
    modules = [label(f"model.layers.7.{name}.weight", "llama") for name in layer]
    assert [m.module for m in modules] == [
        "attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "norm.attn", "norm.mlp"
    ]  # fmt: skip
    assert {m.layer for m in modules} == {7}
    assert label("model.embed_tokens.weight").module == "embed"
    assert label("model.norm.weight") == Label(None, "norm.final", "weight")
    assert label("lm_head.weight").module == "head"


def test_unknown_names_keep_their_layer():
    assert label("transformer.h.11.attn.c_attn.bias") == Label(
        11, "transformer.attn.c_attn", "bias"
    )
    assert label("w") == Label(None, "w", "w")


def test_unknown_family():
    assert "llama" in families()
    with pytest.raises(FormatError, match="known: llama"):
        label("w", "lama")
