"""A run on disk for tests: branches `normal` and `spike`, weights in shards, moments, a log."""

import json

import torch
from safetensors.torch import save_file

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (24, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.up_proj.weight": (24, 16),
    "model.layers.1.input_layernorm.weight": (16,),
    "lm_head.weight": (40, 16),
}

TOML = """
name = "small"
title = "a small run"
family = "llama"
[checkpoints]
folder = "checkpoints"
pattern = '(?P<branch>[a-z0-9]+)_ckpt_(?P<number>\\d+)'
steps_per_number = 100
tokens_per_step = 1000
[adam]
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
[learning_rate]
peak = 1e-2
final = 1e-3
warmup = 10
total = 1000
[[forks]]
branch = "spike"
parent = "normal"
number = 1
[sources]
loss = ["log.csv"]
"""


def tensors(seed, shapes):
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.02 * torch.randn(s, generator=generator) for n, s in shapes.items()}


def write_checkpoint(folder, weights, *, optimizer=True, step=100, dtype=torch.bfloat16):
    """Two shards with an index, and the moments beside them."""
    folder.mkdir(parents=True)
    names = list(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[:3],
        "model-00002-of-00002.safetensors": names[3:],
    }
    for file, mine in shards.items():
        save_file(
            {n: weights[n].to(dtype).contiguous() for n in mine}, folder / file, {"format": "pt"}
        )
    index = {"metadata": {}, "weight_map": {n: f for f, mine in shards.items() for n in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if optimizer:
        state = {}
        for n, w in weights.items():
            state[f"{n}.exp_avg"] = (1e-3 * w).contiguous()
            state[f"{n}.exp_avg_sq"] = (4e-3 * w).square().contiguous()
            state[f"{n}.step"] = torch.tensor(float(step))
        save_file(state, folder / "optimizer.safetensors")


def small_run(folder, *, shapes=SHAPES, optimizer=True, last=4):
    """Checkpoints 0 … `last` of `normal`, 2 … `last` of `spike`, which left it at 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis360.toml").write_text(TOML)
    start = tensors(0, shapes)
    drift = tensors(1, shapes)
    for branch, first, turn in (("normal", 0, 0.0), ("spike", 2, 1.0)):
        other = tensors(2, shapes)
        for number in range(first, last + 1):
            weights = {
                n: w + 0.1 * number * drift[n] + turn * 0.1 * (number - 1) * other[n]
                for n, w in start.items()
            }
            target = folder / "checkpoints" / f"{branch}_ckpt_{number:03d}"
            write_checkpoint(target, weights, optimizer=optimizer, step=100 * number)
    lines = ["branch,step,tokens,loss"]
    lines += [f"normal,{s},{1000 * s},{5 - s / 200}" for s in range(1, 401)]
    lines += [
        f"spike,{s},{1000 * s},{5 - s / 200 + (2 if 220 < s < 260 else 0)}" for s in range(101, 401)
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder
