"""Writes checkpoints as DeepSpeed does: by concatenating, padding and chunking tensors.

Written from DeepSpeed's sources (``runtime/engine.py``, ``runtime/zero/stage_1_and_2.py``,
``stage3.py``, ``bf16_optimizer.py``, ``checkpoint/ds_to_universal.py``), not from the reader.
Padding is NaN, so that a statistic that sees it shows it.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.formats.llama import Trained

NAN = float("nan")


@dataclass
class fragment_address:  # noqa: N801 - DeepSpeed's name
    """Where in a rank's partition a parameter lies."""

    numel: int
    start: int


class ZeroStageEnum(enum.IntEnum):
    """As DeepSpeed's, pickled by value."""

    optimizer_states = 1
    gradients = 2
    weights = 3


class LossScaler:
    """An object that must not be made when the file is read."""

    def __init__(self) -> None:
        self.cur_scale = 1.0


def names_of(model: Trained, groups: int = 2) -> list[list[str]]:
    """Parameters of each group of the optimizer: matrices, then gains."""
    names = list(model.master)
    if groups == 1:
        return [names]
    return [[n for n in names if model.master[n].ndim > 1],
            [n for n in names if model.master[n].ndim < 2]]  # fmt: skip


def settings(model: Trained, groups: list[list[str]]) -> list[dict]:
    """The optimizer's groups, each with one flat parameter."""
    return [
        {"params": [g], "lr": model.lr, "betas": model.betas, "eps": model.eps,
         "weight_decay": 0.0 if g else model.weight_decay}
        for g in range(len(groups))
    ]  # fmt: skip


def model_states(model: Trained, shapes: list[list[str]], world: int, **more: object) -> dict:
    """What ``mp_rank_00_model_states.pt`` holds."""
    module = OrderedDict(model.weight)
    module["model.rotary.inv_freq"] = torch.ones(4)
    return {
        "module": module, "buffer_names": ["model.rotary.inv_freq"], "optimizer": None,
        "param_shapes": [OrderedDict((n, model.master[n].shape) for n in g) for g in shapes],
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {},
        "lr_scheduler": None, "skipped_steps": 0, "global_steps": model.step,
        "dp_world_size": world, "mp_world_size": 1, "ds_version": "0.14.0",
        "ds_config": {
            "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": {
                "lr": 9.0, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        },
    } | more  # fmt: skip


def zero12(
    folder: Path, model: Trained, world: int, *, stage: int = 1, style: str = "zero",
    groups: list[list[str]] | None = None, gap: int = 0, step: object = "tensor", mp: int = 0,
    **more: object,
) -> None:  # fmt: skip
    """Write ZeRO 1 or 2; `style` is ``"zero"``, ``"bf16"`` or ``"elastic"``.

    With a `gap` every parameter but the last begins at a multiple of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = groups or names_of(model)
    said = model_states(model, groups, world, **more)
    torch.save(said, folder / f"mp_rank_{mp:02d}_model_states.pt")
    states = model.states()
    paddings = [[-model.master[n].numel() % gap if gap and n != g[-1] else 0 for n in g]
                for g in groups]  # fmt: skip
    flat: dict[str, list[list[torch.Tensor]]] = {}
    lean: list[list[int]] = []
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        flat[kind] = []
        for names, behind in zip(groups, paddings, strict=True):
            tensors = [
                torch.cat([states[kind][n].flatten(), torch.full((p,), NAN)])
                for n, p in zip(names, behind, strict=True)
            ]
            full = torch.cat(tensors)
            used = full.numel()
            full = torch.cat([full, torch.full((-used % (2 * world),), NAN)])
            chunks = [c.clone() for c in full.chunk(world)]
            flat[kind].append(chunks)
            if kind == "master":
                size = chunks[0].numel()
                lean.append([max(0, min(size, used - r * size)) for r in range(world)])
    for rank in range(world):
        masters = [flat["master"][g][rank] for g in range(len(groups))]
        cut = [m[: lean[g][rank]] for g, m in enumerate(masters)]
        count = torch.tensor(float(model.step)) if step == "tensor" else step
        state = {
            g: {"step": count, "exp_avg": flat["exp_avg"][g][rank],
                "exp_avg_sq": flat["exp_avg_sq"][g][rank]}
            for g in range(len(groups))
        }  # fmt: skip
        told: dict = {
            "loss_scaler": LossScaler(), "dynamic_loss_scale": False, "overflow": False,
            "clip_grad": 1.0, "zero_stage": ZeroStageEnum(stage),
            "base_optimizer_state": {"state": state, "param_groups": settings(model, groups)},
            "single_partition_of_fp32_groups": cut,
            "group_paddings": [m.numel() - c.numel() for m, c in zip(masters, cut, strict=True)],
            "partition_count": [world] * len(groups), "ds_version": "0.14.0",
            "param_slice_mappings": [{n: fragment_address(1, 0) for n in g} for g in groups],
        }  # fmt: skip
        if gap:
            told["param_alignment_paddings"] = paddings
        if style == "bf16":
            del told["zero_stage"]
            told["single_partition_of_fp32_groups"] = masters
        if style == "elastic":
            told["base_optimizer_state"] = [
                {k: v[: lean[g][rank]] if k != "step" else v for k, v in s.items()}
                for g, s in state.items()
            ]
            told["partition_count"] = world
        start = "bf16_" if style == "bf16" else ""
        torch.save(
            {"optimizer_state_dict": told, "ds_config": {}, "ds_version": "0.14.0"},
            folder / f"{start}zero_pp_rank_{rank}_mp_rank_{mp:02d}_optim_states.pt",
        )


def shares(tensor: torch.Tensor, world: int) -> list[torch.Tensor]:
    """A parameter as ZeRO 3 divides it: equal shares, padded at the end."""
    share = math.ceil(tensor.numel() / world)
    padding = torch.full((share * world - tensor.numel(),), NAN, dtype=tensor.dtype)
    return [s.clone() for s in torch.cat([tensor.flatten(), padding]).split(share)]


def zero3(folder: Path, model: Trained, world: int, frozen: tuple[str, ...] = ()) -> None:
    """Write ZeRO 3, with subgroups of five parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [[n for n in g if n not in frozen] for g in names_of(model)]
    subgroups = [g[i : i + 5] for g in groups for i in range(0, len(g), 5)]
    states, ids = model.states(), iter(range(len(subgroups)))
    told_groups = [
        {**s, "params": [next(ids) for _ in range(0, len(g), 5)]}
        for s, g in zip(settings(model, groups), groups, strict=True)
    ]
    for rank in range(world):
        states_at = model_states(
            model, subgroups, world,
            module=OrderedDict((n, torch.empty(0, dtype=torch.bfloat16)) for n in model.weight),
            frozen_param_shapes={n: model.weight[n].shape for n in frozen},
            frozen_param_fragments={n: shares(model.weight[n], world)[rank] for n in frozen},
        )  # fmt: skip
        torch.save(states_at, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flat = {
            kind: [torch.cat([shares(states[kind][n], world)[rank] for n in g]) for g in subgroups]
            for kind in ("master", "exp_avg", "exp_avg_sq")
        }
        state = {
            g: {"step": torch.tensor(float(model.step)), "exp_avg": flat["exp_avg"][g],
                "exp_avg_sq": flat["exp_avg_sq"][g]}
            for g in range(len(subgroups))
        }  # fmt: skip
        told = {
            "zero_stage": ZeroStageEnum.weights, "loss_scaler": LossScaler(), "overflow": False,
            "partition_count": world, "fp32_flat_groups": flat["master"],
            "optimizer_state_dict": {"state": state, "param_groups": told_groups},
        }  # fmt: skip
        torch.save(
            {"optimizer_state_dict": told},
            folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )


def universal(folder: Path, model: Trained, *, bare: bool = False, vocab: int = 0) -> None:
    """Write a universal checkpoint; `bare` as from ZeRO 3, with flat tensors and no dictionaries.

    With `vocab` the embedding's rows from there on are padding, which only the weights have.
    """
    states = {"fp32": model.master, "exp_avg": model.exp_avg, "exp_avg_sq": model.exp_avg_sq}
    buffer = folder / "zero" / "model.rotary.inv_freq"  # newer converters write these too
    buffer.mkdir(parents=True)
    torch.save({"param": torch.ones(4)}, buffer / "fp32.pt")
    for name in model.master:
        place = folder / "zero" / name
        place.mkdir(parents=True)
        for kind, tensors in states.items():
            held: dict = {"cat_dim": 0, "param": tensors[name]}
            if vocab and name in ("model.embed_tokens.weight", "lm_head.weight"):
                held = {"cat_dim": 0, "param": tensors[name][:vocab], "vocab_tensor": True}
            torch.save(tensors[name].flatten() if bare else held, place / f"{kind}.pt")
        torch.save(torch.tensor(float(model.step)), place / "step.pt")
    groups = names_of(model)
    told = {"zero_stage": 1, "clip_grad": 1.0, "param_groups": settings(model, groups)}
    torch.save(told, folder / "zero" / "optimizer_state.pt")
    start = "zero_pp_rank_0_" if bare else ""
    torch.save(model_states(model, groups, 1), folder / f"{start}mp_rank_00_model_states.pt")


MEGATRON = {
    "tied_modules.embed.word_embeddings.weight": (12, 4),
    "3.input_layernorm.weight": (4,),
    "3.self_attention.query_key_value.weight": (24, 4),
    "3.self_attention.query_key_value.bias": (24,),
    "3.self_attention.dense.weight": (4, 8),
    "3.self_attention.dense.bias": (4,),
    "4.mlp.dense_h_to_4h.weight": (16, 4),
    "4.mlp.dense_4h_to_h.weight": (4, 16),
    "4.mystery.weight": (4, 4),
    "6.weight": (4,),
}
"""Names as in the pipelines of Megatron-DeepSpeed and GPT-NeoX, to the shapes of the whole."""

COPIES = ("norm.weight", "dense.bias", "6.weight")
ROWS = ("dense.weight", "dense_4h_to_h.weight")


def megatron() -> Trained:
    """Random states of a pipeline's parameters."""
    draw = torch.Generator().manual_seed(1)
    states = [
        {n: torch.randn(shape, generator=draw) for n, shape in MEGATRON.items()} for _ in range(4)
    ]
    states[0] = {n: t.bfloat16() for n, t in states[1].items()}
    return Trained(None, *states, step=9)


def slices(name: str, tensor: torch.Tensor, tp: int) -> list[torch.Tensor]:
    """What each tensor-parallel rank has of it."""
    if name.endswith(COPIES):
        return [tensor.clone() for _ in range(tp)]
    return [c.clone() for c in tensor.chunk(tp, 1 if name.endswith(ROWS) else 0)]


def pipeline(folder: Path, model: Trained, tp: int, world: int, **more: object) -> None:
    """Write two stages, the embedding tied into the second one, with the weights by layer."""
    names = list(model.master)
    stages = [names[:6], [names[0], *names[6:]]]
    for s, held in enumerate(stages):
        for t in range(tp):
            cut = [
                {n: slices(n, tensors[n], tp)[t] for n in held}
                for tensors in model.states().values()
            ]
            mine = Trained(None, *cut, step=model.step)
            zero12(folder, mine, world, style="bf16", groups=names_of(mine), mp=s * tp + t,
                   module=None, **more)  # fmt: skip
            layers: dict[int, dict[str, torch.Tensor]] = {}
            for n in held if s == 0 else held[1:]:
                first, rest = n.split(".", 1)
                layer, key = (1, rest.split(".", 1)[1]) if first[0] == "t" else (int(first), rest)
                layers.setdefault(layer, {})[key] = mine.weight[n]
            for layer, weights in layers.items():
                axis = f"-model_{t:02d}" if tp > 1 else ""
                torch.save(
                    OrderedDict(weights), folder / f"layer_{layer:02d}{axis}-model_states.pt"
                )
