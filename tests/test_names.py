import pytest
import torch

from analysis360.core import Label
from analysis360.errors import FormatError
from analysis360.names import families, find_family, label, model_order


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
    assert label("net.h.11.mixer.c_attn.bias") == Label(11, "net.mixer.c_attn", "bias")
    assert label("w") == Label(None, "w", "w")


def test_unknown_family():
    assert "llama" in families()
    with pytest.raises(FormatError, match="known: .*llama"):
        label("w", "lama")


CONFIGS = {
    "gpt-neox": ("GPTNeoXConfig", {}),
    "bloom": ("BloomConfig", {}),
    "gpt2": ("GPT2Config", {}),
    "olmo": ("Olmo2Config", {"num_key_value_heads": 2}),
    "sandwich": ("Gemma3TextConfig", {"num_key_value_heads": 2, "head_dim": 8}),
    "sandwich: Gemma 2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 8}),
    "llama: Gemma": ("GemmaConfig", {"num_key_value_heads": 2, "head_dim": 8}),
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama: OLMo 1": ("OlmoConfig", {}),
    "llama: Qwen 2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "llama: Qwen 3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}),
    "llama: Mistral": ("MistralConfig", {"num_key_value_heads": 2}),
    "llama: Mixtral": ("MixtralConfig", {"num_local_experts": 3}),
    "llama: OLMoE": ("OlmoeConfig", {"num_experts": 3}),
}


def real_model(config, **more):
    """A model of transformers, without values."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 4, "vocab_size": 50}
    made = getattr(transformers, config)(**sizes, **tokens, **more)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(made)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_real_models(family):
    """Each parameter has a module and layer, the family is found, the order is the model's."""
    config, more = CONFIGS[family]
    names = [name for name, _ in real_model(config, **more).named_parameters()]
    expected = family.partition(":")[0]
    assert find_family(names) == expected
    labels = [label(name, expected) for name in names]
    known = {"embed", "attn", "mlp", "norm", "head"}
    assert {found.module.partition(".")[0] for found in labels} <= known
    assert {found.layer for found in labels} == {None, *range(12)}
    shuffled = sorted(names, key=lambda name: name[::-1])
    if "MoE" not in family and "Mixtral" not in family:
        assert model_order(shuffled, expected) == names


def test_names_of_experts():
    found = label("model.layers.2.block_sparse_moe.experts.11.w2.weight")
    assert (found.layer, found.module, found.expert) == (2, "mlp.down", 11)
    names = [f"model.layers.0.mlp.experts.{i}.down_proj.weight" for i in (1, 0)]
    assert model_order(names, "llama") is None


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.transformer.blocks.3.att_proj.weight", 3, "attn.qkv"),
        ("transformer.blocks.3.ff_out.weight", 3, "mlp.down"),
        ("transformer.ff_out.weight", None, "head"),
        ("blocks.31.feed_forward.w1.weight", 31, "mlp.gate"),
        ("lm_head.norm.weight", None, "norm.final"),
        ("decoder.layers.5.self_attention.linear_qkv.weight", 5, "attn.qkv"),
        ("decoder.layers.5.self_attention.linear_qkv.layer_norm_weight", 5, "norm.attn"),
        ("transformer.h.7.mlp.c_fc2.weight", 7, "mlp.gate"),
    ],
)
def test_trainers_own_names(name, layer, module):
    found = label(name)
    assert (found.layer, found.module, found.param) == (layer, module, "weight")


def test_one_unknown_name_has_no_place_in_the_order():
    assert model_order(["model.norm.weight", "model.extra.weight"], "llama") is None
    assert find_family(["w", "b"]) is None


@pytest.mark.parametrize(("more", "family", "module"), [
    ((), "llama", "norm.mlp"),
    (("pre_feedforward_layernorm", "post_feedforward_layernorm"), "sandwich", "norm.attn.post"),
])  # fmt: skip
def test_norms_behind_attention(more, family, module):
    """One name, two meanings: Gemma 2 has it behind attention, Llama before the MLP."""
    names = [
        f"model.layers.0.{n}.weight"
        for n in ("self_attn.q_proj", "input_layernorm", "post_attention_layernorm", *more)
    ]
    assert find_family(names) == family
    assert label(names[2], family).module == module
