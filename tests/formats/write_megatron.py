"""A small Llama as the checkpoint that Megatron-LM's trainer would have written of it.

A model of what Megatron does, apart from the reader: matrices are fused, padded and cut as whole
tensors; the order of parameters is that of real modules, and the numbering that of a real
optimizer; flat buffers are filled parameter by parameter.
"""

import argparse
import io
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

PADDING = 777.0


@dataclass(frozen=True)
class How:
    """How training was divided, and which of Megatron's ways of saving is meant."""

    tp: int = 1
    pp: int = 1
    vp: int = 1
    dp: int = 3
    core: bool = False  # names of Megatron core instead of those of its first models
    engine: bool = False  # norms inside the layers that follow them, as Transformer Engine has them
    optimizer: str | None = "half"  # half, float, flat, buckets, joined, aligned
    bucket: int = 5000  # elements from which a bucket is closed
    multiple: int = 16  # make_vocab_size_divisible_by


def padded(rows, how):
    multiple = how.multiple * how.tp
    return math.ceil(rows / multiple) * multiple


def fused_layer(full, i, s, how):
    """Parameters of a block in the order of its modules: name, whole tensor(s), and what is cut."""
    at = f"model.layers.{i}."

    def get(name):
        return [(p, full[f"{at}{name}.{p}"]) for p in ("weight", "bias") if f"{at}{name}.{p}" in full]  # fmt: skip

    def plain(name, source, dim):
        # the bias of a row-parallel layer and a norm are on all ranks
        return [(f"{name}.{p}", x, dim if p == "weight" or dim == 0 else None) for p, x in get(source)]  # fmt: skip

    qkv_name = "self_attention.linear_qkv" if how.core else "self_attention.query_key_value"
    fc1_name = "mlp.linear_fc1" if how.core else "mlp.dense_h_to_4h"
    head = s.hidden // s.heads
    qkv = []
    for p, q in get("self_attn.q_proj"):
        k, v = (full[f"{at}self_attn.{n}_proj.{p}"] for n in "kv")
        groups = s.kv_heads
        by_group = [
            q.reshape(groups, head * s.heads // groups, -1),
            k.reshape(groups, head, -1),
            v.reshape(groups, head, -1),
        ]
        qkv.append((f"{qkv_name}.{p}", torch.cat(by_group, dim=1).reshape(-1, *q.shape[1:]), 0))
    up = dict(get("mlp.up_proj"))
    gate = dict(get("mlp.gate_proj"))
    fc1 = [(f"{fc1_name}.{p}", (gate[p], x) if gate else x, 0) for p, x in up.items()]
    norms = [plain(n, n, None) for n in ("input_layernorm", "post_attention_layernorm")]
    if not how.core:
        dense = plain("self_attention.dense", "self_attn.o_proj", 1)
        return norms[0] + qkv + dense + norms[1] + fc1 + plain("mlp.dense_4h_to_h", "mlp.down_proj", 1)  # fmt: skip
    proj = plain("self_attention.linear_proj", "self_attn.o_proj", 1)
    fc2 = plain("mlp.linear_fc2", "mlp.down_proj", 1)
    if how.engine:
        inside = [
            [(f"{place}.layer_norm_{n.rpartition('.')[2]}", x, None) for n, x, _ in norm]
            for place, norm in zip((qkv_name, fc1_name), norms)
        ]
        return proj + inside[0] + qkv + inside[1] + fc1 + fc2
    second = [(n.replace("post_attention", "pre_mlp"), x, d) for n, x, d in norms[1]]
    return norms[0] + proj + qkv + second + fc1 + fc2


def cut(x, dim, t, tp):
    """What rank `t` keeps of a tensor."""
    if isinstance(x, tuple):  # both halves of a gated layer are divided, then put together
        return torch.cat([torch.chunk(half, tp, dim=0)[t] for half in x])
    return x.clone() if dim is None else torch.chunk(x, tp, dim=dim)[t].clone()


def stages(layers, how):
    """Blocks of each chunk of each stage: chunks go through all stages in turn."""
    runs = iter(torch.arange(layers).chunk(how.pp * how.vp))
    found = {(v, p): next(runs).tolist() for v in range(how.vp) for p in range(how.pp)}
    return [[found[v, p] for v in range(how.vp)] for p in range(how.pp)]


def rank_tensors(full, s, how, t, p, v):
    """Everything that one chunk of one rank holds, under Megatron's names."""
    first, last = (p, v) == (0, 0), (p, v) == (how.pp - 1, how.vp - 1)

    def vocabulary(name):
        rows = full[name]
        extra = padded(s.vocab, how) - s.vocab
        return torch.cat([rows, torch.full((extra, s.hidden), PADDING, dtype=rows.dtype)])

    found = {}
    top = "" if how.core else "language_model."
    if first:
        embed = vocabulary("model.embed_tokens.weight")
        found[f"{top}embedding.word_embeddings.weight"] = cut(embed, 0, t, how.tp)
        if "model.embed_positions.weight" in full:
            found[f"{top}embedding.position_embeddings.weight"] = full["model.embed_positions.weight"].clone()  # fmt: skip
    block = "decoder" if how.core else "encoder"
    for local, i in enumerate(stages(s.layers, how)[p][v]):
        for name, x, dim in fused_layer(full, i, s, how):
            found[f"{top}{block}.layers.{local}.{name}"] = cut(x, dim, t, how.tp)
    if last:
        for kind in ("weight", "bias"):
            if f"model.norm.{kind}" in full:
                found[f"{top}{block}.final_layernorm.{kind}"] = full[f"model.norm.{kind}"].clone()
        if "lm_head.weight" in full:
            found[f"{top}output_layer.weight"] = cut(vocabulary("lm_head.weight"), 0, t, how.tp)
        elif not first:
            name = "output_layer.weight" if how.core else "word_embeddings.weight"
            found[name] = cut(vocabulary("model.embed_tokens.weight"), 0, t, how.tp)
    return found


class Tree(nn.Module):
    """Modules within modules, with parameters by their dotted names."""

    def put(self, name, tensor):
        first, _, rest = name.partition(".")
        if not rest:
            return self.register_parameter(first, nn.Parameter(tensor))
        if not hasattr(self, first):
            self.add_module(first, Tree())
        return getattr(self, first).put(rest, tensor)


def saved_model(module, how):
    """As ``state_dict_for_save_checkpoint()`` gives it."""
    if how.core:
        saved = module.state_dict()
        saved["decoder.layers.0.self_attention.core_attention._extra_state"] = None
        saved["decoder.layers.0.mlp.linear_fc1._extra_state"] = io.BytesIO(b"scales")
        return saved
    inner = module.language_model
    found = {}
    if hasattr(inner, "embedding"):
        found["embedding"] = {n: m.state_dict() for n, m in inner.embedding.named_children()}
    found["encoder"] = inner.encoder.state_dict()
    found["encoder"]["layers.0.self_attention.rotary_emb.inv_freq"] = torch.ones(4)
    if hasattr(inner, "output_layer"):
        found["output_layer"] = inner.output_layer.state_dict()
    found = {"language_model": found}
    if hasattr(module, "word_embeddings"):
        found["word_embeddings_for_head"] = module.word_embeddings.state_dict()
    return found


def grouped(named, how):
    """Parameters by weight decay: first models decayed first, core whichever comes first."""
    decays = {n: not (n.endswith(".bias") or p.ndim == 1) for n, p in named}
    kinds = list(dict.fromkeys(decays.values())) if how.core else [True, False]
    return [
        {"params": [p for n, p in named if decays[n] is kind], "wd_mult": float(kind), "lr_mult": 1.0}
        for kind in kinds if kind in decays.values()
    ]  # fmt: skip


def optimizer_state(modules, tensors, made, how):
    """Megatron's state of the optimizer, made by a real one."""
    named = [(n, p) for m in modules for n, p in m.named_parameters()]
    groups = grouped(named, how)
    main = {}  # the parameter that the optimizer works on
    for group in groups:
        group["weight_decay"] = made.weight_decay * group["wd_mult"]
        for i, p in enumerate(group["params"]):
            half = p.dtype != torch.float32
            main[p] = nn.Parameter(p.detach().float()) if half else p
            group["params"][i] = main[p]
    optimizer = torch.optim.AdamW(groups, lr=made.lr, betas=made.betas, eps=made.eps)
    for m, held in zip(modules, tensors):
        for n, p in m.named_parameters():
            main[p].data.copy_(held["master"][n])
            optimizer.state[main[p]] = {k: held[k][n] for k in ("exp_avg", "exp_avg_sq")}
    for group in optimizer.param_groups:
        group["step"] = made.step
    saved = optimizer.state_dict()
    if how.optimizer == "float":
        return saved
    if how.optimizer != "half":
        del saved["state"]
        for group in saved["param_groups"]:
            del group["params"]
        return {"optimizer": saved}
    of_half = [[p for p in g["params"] if any(p is main[q] for q in main if q.dtype != torch.float32)] for g in optimizer.param_groups]  # fmt: skip
    return {"optimizer": saved, "fp32_from_fp16_params": of_half}


def flat_buffers(module, held, how):
    """The buffers of the distributed optimizer for one chunk of the model."""
    params = list(module.named_parameters())
    if how.optimizer == "flat":
        end = sum(p.numel() for _, p in params)
        whole = math.ceil(end / how.dp) * how.dp
        buffers = {k: torch.full((whole,), PADDING) for k in ("param", "exp_avg", "exp_avg_sq")}
        for name, p in params:
            start = end - p.numel()
            for k, buffer in buffers.items():
                buffer[start:end] = held["master" if k == "param" else k][name].flatten()
            end = start
        return {torch.float32: buffers}, None
    align = 64 if how.optimizer == "aligned" else 1
    at, opened, ranges, buckets, waiting = 0, 0, {}, [], 0
    for name, p in reversed(params):
        at = math.ceil(at / align) * align
        ranges[name] = (at, at + p.numel())
        at, waiting = at + p.numel(), waiting + 1
        if how.optimizer != "aligned" and at - opened >= how.bucket and waiting > 1:
            buckets.append((opened, at))
            at = opened = math.ceil(at / how.dp) * how.dp
            waiting = 0
    if waiting:
        buckets.append((opened, at))
        at = math.ceil(at / how.dp) * how.dp
    buffers = {k: torch.full((at,), PADDING) for k in ("param", "exp_avg", "exp_avg_sq")}
    for name, (start, stop) in ranges.items():
        for k, buffer in buffers.items():
            buffer[start:stop] = held["master" if k == "param" else k][name].flatten()
    sizes = [b - a for a, b in buckets]
    if how.optimizer == "buckets":
        ends = [a for a, _ in buckets[1:]] + [at]
        cut = {k: [x[a:b].clone() for (a, _), b in zip(buckets, ends)] for k, x in buffers.items()}
        return {torch.float32: cut}, sizes
    joined = {k: torch.cat([x[a:b] for a, b in buckets]) for k, x in buffers.items()}
    joined["numel_unpadded"] = sum(sizes)
    return {(torch.bfloat16, torch.float32): joined}, sizes


def arguments(s, made, how, gated, tied):
    """Those that the reader needs, and a few of the hundreds of others."""
    return argparse.Namespace(
        num_layers=s.layers, hidden_size=s.hidden, num_attention_heads=s.heads,
        ffn_hidden_size=s.ffn, kv_channels=s.hidden // s.heads, max_position_embeddings=64,
        group_query_attention=s.kv_heads != s.heads,
        num_query_groups=s.kv_heads if s.kv_heads != s.heads else 1,
        swiglu=gated, untie_embeddings_and_output_weights=not tied,
        tensor_model_parallel_size=how.tp, pipeline_model_parallel_size=how.pp,
        data_parallel_size=how.dp, padded_vocab_size=padded(s.vocab, how), vocab_size=s.vocab,
        make_vocab_size_divisible_by=how.multiple, tokenizer_type="LLaMATokenizer",
        optimizer="adam", adam_beta1=made.betas[0], adam_beta2=made.betas[1], adam_eps=made.eps,
        weight_decay=made.weight_decay, clip_grad=1.0, lr=0.5, params_dtype=torch.bfloat16,
        use_distributed_optimizer=how.optimizer not in ("half", "float", None),
        bf16=True, rank=0, train_iters=1000, data_path=None,
    )  # fmt: skip


def write(folder, made, how, change=None):
    """Write one checkpoint below `folder`; `change(root, tp, pp)` may spoil a rank before."""
    s = made.sizes
    full = made.states()
    gated = "model.layers.0.mlp.gate_proj.weight" in made.weight
    args = arguments(s, made, how, gated, tied="lm_head.weight" not in made.weight)
    for p in range(how.pp):
        for t in range(how.tp):
            modules, tensors = [], []
            for v in range(how.vp):
                held = {k: rank_tensors(full[k], s, how, t, p, v) for k in full}
                module = Tree()
                for name, tensor in held["weight"].items():
                    module.put(name, tensor)
                modules.append(module)
                tensors.append(held)
            random.seed(t)
            rng = {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state(), "torch_rng_state": torch.get_rng_state()}  # fmt: skip
            root = {"args": args, "checkpoint_version": 3.0, "iteration": made.step}
            for v, module in enumerate(modules):
                root["model" if how.vp == 1 else f"model{v}"] = saved_model(module, how)
            if how.optimizer is not None:
                root["optimizer"] = optimizer_state(modules, tensors, made, how)
                root["opt_param_scheduler"] = {"max_lr": 0.5, "num_steps": made.step}
            root["rng_state"] = [rng]
            if change is not None:
                change(root, t, p)
            below = folder / (f"mp_rank_{t:02d}_{p:03d}" if how.pp > 1 else f"mp_rank_{t:02d}")
            below.mkdir(parents=True, exist_ok=True)
            torch.save(root, below / "model_optim_rng.pt")
            if how.optimizer not in ("half", "float", None):
                flat, told = {}, []
                for v, module in enumerate(modules):
                    flat[v], sizes = flat_buffers(module, tensors[v], how)
                    told.append({kind: sizes for kind in flat[v]})
                if how.optimizer == "buckets":
                    flat["per_bucket_numel_unpadded"] = told
                elif how.optimizer != "flat":
                    flat["buckets_coalesced"] = True
                torch.save(flat, below / "distrib_optim.pt")
