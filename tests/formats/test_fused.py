"""Fused matrices are divided into what the model itself takes out of them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import analysis360 as a360
from analysis360.core import Part, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats import Heads, Index, index_checkpoint
from analysis360.formats.fused import divide
from analysis360.storage.local import LocalStore
from analysis360.storage.memory import MemoryStore
from analysis360.testing import read_tensor

HEADS, SIZE, HIDDEN = 4, 3, 12


def saved(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return LocalStore(folder)


def found(store, **options):
    index = index_checkpoint(store, **options)
    return {t.name: read_tensor(store, t) for t in index.tensors}, dict(index.skipped)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "prefix", ["gpt_neox.layers.0.attention", "transformer.h.0.self_attention"]
)
def test_queries_keys_and_values_of_each_head(tmp_path, prefix):
    weight, bias = random(3 * HIDDEN, HIDDEN), random(3 * HIDDEN)
    tensors = {f"{prefix}.query_key_value.weight": weight, f"{prefix}.query_key_value.bias": bias}
    got, skipped = found(saved(tmp_path, tensors, num_attention_heads=HEADS))
    assert not skipped
    # As modeling_gpt_neox.py and modeling_bloom.py do: heads × 3 × size
    apart = weight.view(HEADS, 3, SIZE, HIDDEN), bias.view(HEADS, 3, SIZE)
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(
            got.pop(f"{prefix}.{name}.weight"), apart[0][:, i].flatten(0, 1)
        )
        np.testing.assert_array_equal(got.pop(f"{prefix}.{name}.bias"), apart[1][:, i].flatten())
    assert not got


def test_columns(tmp_path):
    weight, bias = random(HIDDEN, 3 * HIDDEN), random(3 * HIDDEN)
    at = "transformer.h.5.attn.c_attn"
    got, _ = found(saved(tmp_path, {f"{at}.weight": weight, f"{at}.bias": bias}), family="gpt2")
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(got[f"{at}.{name}.weight"], weight.split(HIDDEN, dim=1)[i])
        np.testing.assert_array_equal(got[f"{at}.{name}.bias"], bias.split(HIDDEN)[i])


def test_grouped_queries_and_gates(tmp_path):
    at = "model.layers.1"
    qkv, gate_up = random(HIDDEN + 2 * 2 * SIZE, HIDDEN), random(10, HIDDEN)
    tensors = {f"{at}.self_attn.qkv_proj.weight": qkv, f"{at}.mlp.gate_up_proj.weight": gate_up}
    store = saved(tmp_path, tensors, num_attention_heads=HEADS, num_key_value_heads=2)
    got, _ = found(store)
    split = dict(zip("qkv", qkv.split([HIDDEN, 2 * SIZE, 2 * SIZE]), strict=True))
    for name, rows in split.items():
        np.testing.assert_array_equal(got[f"{at}.self_attn.{name}_proj.weight"], rows)
    np.testing.assert_array_equal(got[f"{at}.mlp.gate_proj.weight"], gate_up[:5])
    np.testing.assert_array_equal(got[f"{at}.mlp.up_proj.weight"], gate_up[5:])
    by_head, _ = found(store, per_head=True)
    np.testing.assert_array_equal(
        by_head[f"{at}.self_attn.q_proj.weight[2]"], split["q"][2 * SIZE : 3 * SIZE]
    )
    assert sum("k_proj" in name for name in by_head) == 2


@pytest.mark.slow
def test_real_models_use_them_so(tmp_path):
    """What we call query, key and value is what the model's attention makes of the matrix."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 20}
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**sizes, intermediate_size=8, rotary_pct=0.0, **tokens)
    )
    kept = {}
    attention = model.gpt_neox.layers[0].attention
    attention.query_key_value.register_forward_hook(lambda m, i, o: kept.update(x=i[0]))
    attention.dense.register_forward_pre_hook(lambda m, i: kept.update(out=i[0]))
    model(torch.arange(6)[None])
    model.save_pretrained(tmp_path)
    got, _ = found(LocalStore(tmp_path))
    at = "gpt_neox.layers.0.attention"
    q, k, v = (
        (kept["x"] @ torch.tensor(got[f"{at}.{n}.weight"]).T + torch.tensor(got[f"{at}.{n}.bias"]))
        .view(1, 6, 4, 4)
        .transpose(1, 2)
        for n in ("query", "key", "value")
    )
    ours = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours.transpose(1, 2).reshape(1, 6, 16), kept["out"])


def test_heads_of_a_run_are_rows_of_the_table(tmp_path):
    at = "model.layers.0.self_attn"
    q = random(HIDDEN, HIDDEN)
    for step in (1, 2):
        tensors = {f"{at}.q_proj.weight": q * step, f"{at}.o_proj.weight": q}
        saved(tmp_path / f"step{step}", tensors, num_attention_heads=HEADS)
    run = a360.open_run(tmp_path)
    plan = a360.plan(run, ["l2_norm", "displacement"], per_head=True)
    table = plan.run(progress=False)
    rows = table[(table["module"] == "attn.q") & (table["step"] == 2) & (table["against"] == "")]
    assert rows["head"].tolist() == [0, 1, 2, 3]
    expected = [2 * float(q[i * SIZE : (i + 1) * SIZE].norm()) for i in range(HEADS)]
    np.testing.assert_allclose(rows["l2_norm"], expected, rtol=1e-6)
    assert plan.nbytes == a360.plan(run, ["l2_norm", "displacement"]).nbytes
    assert (table.loc[table["module"] == "attn.o", "head"].isna()).all()


def test_moments_are_divided_like_their_weight(tmp_path):
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    weight = random(3 * HIDDEN, HIDDEN)
    optimizer = {
        "state": {0: {"exp_avg": weight * 2, "exp_avg_sq": weight**2, "step": torch.tensor(5.0)}},
        "param_groups": [{"params": [0], "betas": (0.9, 0.99)}],
    }
    torch.save({"model": {name: weight}, "optimizer": optimizer}, tmp_path / "m.pt")
    (tmp_path / "config.json").write_text('{"n_head": 4}')
    store = LocalStore(tmp_path)
    index = index_checkpoint(store)
    values = {(t.name.split(".")[-2], t.state): read_tensor(store, t) for t in index.tensors}
    assert {state for _, state in values} == {"weight", "exp_avg", "exp_avg_sq", "step"}
    for part in ("query", "key", "value"):
        np.testing.assert_array_equal(values[part, "exp_avg"], 2 * values[part, "weight"])
        assert values[part, "step"] == 5


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "the number of heads is unknown"),
        ({"hidden_size": 12}, "the number of heads is unknown"),
        ({"n_head": -4}, "the number of heads is unknown"),
        ({"n_head": True}, "the number of heads is unknown"),
        ({"n_head": 5}, "36 rows are not 3 of each of 5 heads"),
        ({"n_head": 4, "num_key_value_heads": 2}, "36 rows are not 3 of each of 4 heads"),
    ],
)
def test_what_is_not_known_is_left_whole(tmp_path, config, why):
    name = "h.0.self_attention.query_key_value.weight"
    got, skipped = found(saved(tmp_path, {name: random(36, 12)}, **(config or {})))
    assert got.keys() == {name}
    assert skipped == {
        name: f"not divided into attn.q, attn.k, attn.v: {skipped[name].split(': ')[1]}"
    }
    assert why in skipped[name]


def test_a_damaged_config_is_named(tmp_path):
    store = saved(tmp_path, {"h.0.self_attention.query_key_value.weight": random(36, 12)})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json: not valid JSON"):
        index_checkpoint(LocalStore(tmp_path))
    assert store.files()


def test_gpt2_names_of_matrices_that_are_not_turned(tmp_path):
    """StarCoder: outputs × inputs, one key and value head; its columns are no queries."""
    at = "transformer.h.0.attn.c_attn"
    tensors = {f"{at}.weight": random(HIDDEN + 2 * SIZE, HIDDEN), f"{at}.bias": random(18)}
    got, skipped = found(saved(tmp_path, tensors, n_head=HEADS, multi_query=True))
    assert set(got) == set(tensors) and set(skipped) == set(tensors)
    assert "18 × 12" in skipped[f"{at}.weight"]


def test_falcon_with_few_keys_is_left_whole(tmp_path):
    name = "transformer.h.0.self_attention.query_key_value.weight"
    got, skipped = found(saved(tmp_path, {name: random(36, HIDDEN)}, n_head=HEADS, n_head_kv=1))
    assert set(got) == {name} and "not 3 of each" in skipped[name]


@pytest.mark.parametrize("per_head", [False, True])
def test_columns_of_a_matrix_in_pieces(per_head):
    """Whole rows of it may lie in several files; where they are cut, it stays whole."""
    name, at = "h.0.attn.c_attn.weight", "h.0.attn.c_attn"
    weight = random(HIDDEN, 3 * HIDDEN)
    for cut, divided in ((5 * 36, True), (5 * 36 + 1, False)):
        flat = weight.flatten()
        arrays = {"a": flat[:cut], "b": flat[cut:]}
        parts = (
            Part("a", 0, 4 * cut, "float32", flat=(0, cut)),
            Part("b", 0, 4 * (432 - cut), "float32", flat=(cut, 432)),
        )
        info = TensorInfo(name, name, "weight", (12, 36), "float32", parts)
        store = MemoryStore(arrays, tensors=[info])
        index = divide(Index((info,), heads=Heads(HEADS, HEADS)), store, "gpt2", per_head)
        got = {t.name: read_tensor(store, t) for t in index.tensors}
        if not divided:
            assert set(got) == {name} and "parts of its rows" in dict(index.skipped)[name]
        elif per_head:
            np.testing.assert_array_equal(got[f"{at}.k.weight[2]"], weight[:, 18:21])
        else:
            np.testing.assert_array_equal(got[f"{at}.k.weight"], weight[:, 12:24])


@pytest.mark.parametrize("per_head", [False, True])
def test_steps_are_divided_only_with_their_matrix(tmp_path, per_head):
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    saved(tmp_path, {name: random(36, HIDDEN)})
    save_file({f"{name}.step": torch.tensor(3.0)}, tmp_path / "optim.safetensors")
    for options in ({}, {"num_attention_heads": 5}):
        (tmp_path / "config.json").write_text(json.dumps(options))
        index = index_checkpoint(LocalStore(tmp_path), per_head=per_head)
        assert [(t.name, t.state) for t in index.tensors] == [(name, "weight"), (name, "step")]


@pytest.mark.parametrize("per_head", [False, True])
def test_columns_of_a_large_matrix_are_read_once(tmp_path, monkeypatch, per_head):
    """What lies between each other is taken together, however small the blocks."""
    monkeypatch.setattr("analysis360.engine.schedule.BLOCK", 64)
    at = "transformer.h.0.attn.c_attn"
    for step in (1, 2):
        fused = step * random(HIDDEN, 3 * HIDDEN)
        saved(tmp_path / "fused" / f"step{step}", {f"{at}.weight": fused}, n_head=HEADS)
        parts = dict(zip("qkv", fused.split(HIDDEN, dim=1), strict=True))
        apart = {f"{at}.{name}.weight": part for name, part in parts.items()}
        saved(tmp_path / "apart" / f"step{step}", apart, n_head=HEADS)
    tables = []
    for name in ("fused", "apart"):
        run = a360.open_run(tmp_path / name)
        plan = a360.plan(run, ["rms", "displacement"], per_head=per_head)
        assert plan.nbytes == 2 * 4 * 3 * HIDDEN * HIDDEN
        tables.append(plan.run(progress=False)[["name", "step", "rms", "displacement"]])
    assert tables[0].equals(tables[1])
    assert len(tables[0]) == 3 * (HEADS if per_head else 1) * 3
