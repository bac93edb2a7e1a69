"""A small Llama-shaped decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis360.demo.config import DemoConfig
from analysis360.demo.text import VOCAB

__all__ = ["Llama", "ROPE_THETA", "NORM_EPS"]

ROPE_THETA = 10000.0
NORM_EPS = 1e-5


class _Attention(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads = config.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, -1)
        q = _rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    # `sin` carries the minus sign of its first half.
    return x * cos + torch.cat((x[..., half:], x[..., :half]), -1) * sin


class _Mlp(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden, eps=NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, eps=NORM_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Body(nn.Module):
    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, config.hidden)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=NORM_EPS)


class Llama(nn.Module):
    """Decoder with the parameter names and the arithmetic of a Hugging Face Llama.

    Parameters
    ----------
    config : DemoConfig
        Sizes, and the standard deviation of the initial weights.
    seed : int
        Seed of the initial weights.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DemoConfig, seed: int = 0) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = _Body(config)
            self.lm_head = nn.Linear(config.hidden, VOCAB, bias=False)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                else:
                    weight.normal_(0.0, config.init_std, generator=generator)
        width = config.hidden // config.heads
        rate = ROPE_THETA ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.outer(torch.arange(config.context, dtype=torch.float32), rate)
        cos, sin = angle.cos(), angle.sin()
        self.register_buffer("cos", torch.cat((cos, cos), -1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), -1), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position.

        Parameters
        ----------
        tokens : Tensor of int64, shape (batch, length)
            Token ids; `length` is at most the context.

        Returns
        -------
        Tensor, shape (batch, length, vocabulary)
            Logits.
        """
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits
