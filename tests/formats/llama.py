"""A small Llama, trained for a few steps: what every layout is written from, and compared with.

Names, shapes and roles are those of Hugging Face's Llama. Weights are stored in bfloat16, cast from
float32 masters that AdamW updates, as mixed-precision trainers do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """Of the model."""

    layers: int = 4
    hidden: int = 32
    heads: int = 8
    kv_heads: int = 8
    ffn: int = 48
    vocab: int = 96

    @property
    def config(self) -> dict:
        """As in ``config.json``."""
        return {
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "tie_word_embeddings": False,
        }  # fmt: skip


STANDARD = Sizes()


@dataclass(frozen=True)
class Trained:
    """State after some steps; each mapping has the names of `weight`, in the model's order."""

    sizes: Sizes
    weight: dict[str, torch.Tensor]  # bfloat16
    master: dict[str, torch.Tensor]  # float32
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def states(self) -> dict[str, dict[str, torch.Tensor]]:
        """By state, as `TensorInfo.state` names it."""
        names = ("weight", "master", "exp_avg", "exp_avg_sq")
        return {name: getattr(self, name) for name in names}


def shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes, in the order of Hugging Face's ``named_parameters()``."""
    kv = s.hidden // s.heads * s.kv_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s.vocab, s.hidden)}
    for i in range(s.layers):
        at = f"model.layers.{i}."
        found |= {
            f"{at}self_attn.q_proj.weight": (s.hidden, s.hidden),
            f"{at}self_attn.k_proj.weight": (kv, s.hidden),
            f"{at}self_attn.v_proj.weight": (kv, s.hidden),
            f"{at}self_attn.o_proj.weight": (s.hidden, s.hidden),
            f"{at}mlp.gate_proj.weight": (s.ffn, s.hidden),
            f"{at}mlp.up_proj.weight": (s.ffn, s.hidden),
            f"{at}mlp.down_proj.weight": (s.hidden, s.ffn),
            f"{at}input_layernorm.weight": (s.hidden,),
            f"{at}post_attention_layernorm.weight": (s.hidden,),
        }
    return found | {"model.norm.weight": (s.hidden,), "lm_head.weight": (s.vocab, s.hidden)}


def _norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain


def _logits(p: dict[str, torch.Tensor], s: Sizes, tokens: torch.Tensor) -> torch.Tensor:
    x = p["model.embed_tokens.weight"][tokens]
    batch, length = tokens.shape
    for i in range(s.layers):
        at = f"model.layers.{i}."
        y = _norm(x, p[f"{at}input_layernorm.weight"])
        q, k, v = (
            (y @ p[f"{at}self_attn.{n}_proj.weight"].T).view(batch, length, -1, s.hidden // s.heads)
            for n in "qkv"
        )
        repeat = s.heads // s.kv_heads
        k, v = (t.repeat_interleave(repeat, dim=2) for t in (k, v))
        a = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        x = x + a.transpose(1, 2).reshape(x.shape) @ p[f"{at}self_attn.o_proj.weight"].T
        y = _norm(x, p[f"{at}post_attention_layernorm.weight"])
        gate = F.silu(y @ p[f"{at}mlp.gate_proj.weight"].T)
        up = y @ p[f"{at}mlp.up_proj.weight"].T
        x = x + (gate * up) @ p[f"{at}mlp.down_proj.weight"].T
    return _norm(x, p["model.norm.weight"]) @ p["lm_head.weight"].T


@cache
def trained(sizes: Sizes = STANDARD, steps: int = 3) -> Trained:
    """Train it to copy the next of some random tokens; the same every time."""
    draw = torch.Generator().manual_seed(7)
    master = {
        name: (torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(
            0, 0.2, generator=draw)).requires_grad_()
        for name, shape in shapes(sizes).items()
    }  # fmt: skip
    made = Trained(sizes, {}, {}, {}, {}, steps)
    matrices = [p for p in master.values() if p.ndim > 1]
    gains = [p for p in master.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": made.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=made.lr, betas=made.betas, eps=made.eps,
    )  # fmt: skip
    for _ in range(steps):
        tokens = torch.randint(0, sizes.vocab, (4, 16), generator=draw)
        logits = _logits(master, sizes, tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in master.items():
        state = optimizer.state[parameter]
        made.master[name] = parameter.detach().clone()
        made.weight[name] = parameter.detach().to(torch.bfloat16)
        made.exp_avg[name] = state["exp_avg"].clone()
        made.exp_avg_sq[name] = state["exp_avg_sq"].clone()
    return made
