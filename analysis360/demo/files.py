"""Checkpoints on disk, in the layout of a Hugging Face Llama."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from analysis360.demo.config import DemoConfig
from analysis360.demo.model import NORM_EPS, ROPE_THETA, Llama
from analysis360.demo.text import END, VOCAB

__all__ = ["load_checkpoint", "make_optimizer", "save_checkpoint", "write_folder"]

_END_TEXT = "<|endoftext|>"
_STATE = ("exp_avg", "exp_avg_sq", "step")


def make_optimizer(model: Llama, config: DemoConfig) -> torch.optim.AdamW:
    """Return AdamW for a model; weight decay only on parameters of two dimensions.

    Parameters
    ----------
    model : Llama
        The model.
    config : DemoConfig
        Betas, epsilon and weight decay.

    Returns
    -------
    torch.optim.AdamW
        The optimizer; its learning rate is 0 until set.
    """
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside and rename it, so that it is there whole or not at all.

    Parameters
    ----------
    target : Path
        The folder; replaced if it is there.
    write : callable
        Called with the empty folder to fill.
    """
    aside = target.with_name(target.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)


def save_checkpoint(
    target: Path, model: Llama, optimizer: torch.optim.AdamW, config: DemoConfig
) -> None:
    """Write one checkpoint: bf16 weights, fp32 masters and moments, config and tokenizer.

    Parameters
    ----------
    target : Path
        Folder of the checkpoint.
    model : Llama
        The model; its weights are the fp32 masters.
    optimizer : torch.optim.AdamW
        Its moments; zeros are written before the first step.
    config : DemoConfig
        The configuration.
    """
    write_folder(target, lambda folder: _write(folder, model, optimizer, config))


def _write(folder: Path, model: Llama, optimizer: torch.optim.AdamW, config: DemoConfig) -> None:
    shards: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    state: dict[str, Tensor] = {}
    half = config.layers // 2
    for name, weight in model.named_parameters():
        value = weight.detach()
        parts = name.split(".")
        late = name in ("model.norm.weight", "lm_head.weight") or (
            parts[1] == "layers" and int(parts[2]) >= half
        )
        shards[late][name] = value.to(torch.bfloat16)
        moments = optimizer.state.get(weight) or {
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
            "step": torch.zeros(()),
        }
        for key in _STATE:
            state[f"{name}.{key}"] = moments[key]
        state[f"{name}.master"] = value
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    save_file(state, folder / "optimizer.safetensors", metadata={"format": "pt"})
    _json(folder / "model.safetensors.index.json", index)
    _json(folder / "config.json", _model_config(config))
    _json(folder / "generation_config.json", {"bos_token_id": END, "eos_token_id": END})
    _json(folder / "tokenizer.json", _tokenizer())
    _json(
        folder / "tokenizer_config.json",
        {
            "bos_token": _END_TEXT,
            "clean_up_tokenization_spaces": False,
            "eos_token": _END_TEXT,
            "model_max_length": config.context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def load_checkpoint(source: Path, config: DemoConfig) -> tuple[Llama, torch.optim.AdamW]:
    """Read the fp32 masters and the optimizer's state of a checkpoint.

    Parameters
    ----------
    source : Path
        Folder of the checkpoint.
    config : DemoConfig
        The configuration it was written with.

    Returns
    -------
    model : Llama
        The model.
    optimizer : torch.optim.AdamW
        The optimizer.
    """
    state = load_file(source / "optimizer.safetensors")
    model = Llama(config)
    optimizer = make_optimizer(model, config)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            weight.copy_(state[f"{name}.master"])
        moments = {key: state[f"{name}.{key}"].clone() for key in _STATE}
        if moments["step"] > 0:
            optimizer.state[weight] = moments
    return model, optimizer


def _model_config(config: DemoConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END,
        "dtype": "bfloat16",
        "eos_token_id": END,
        "head_dim": config.hidden // config.heads,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "initializer_range": config.init_std,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.heads,
        "pretraining_tp": 1,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def _byte_signs() -> dict[int, str]:
    """Return the character by which byte-level tokenizers write each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in signs:
            signs[byte] = chr(256 + len(signs) - len(plain))
    return signs


def _tokenizer() -> dict[str, Any]:
    signs = _byte_signs()
    level = {"add_prefix_space": False, "trim_offsets": True, "type": "ByteLevel"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": END,
                "content": _END_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {signs[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
