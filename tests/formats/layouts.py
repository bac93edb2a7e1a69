"""The same small trained model in every layout: what a reader must give is the same for all."""

from __future__ import annotations

import base64
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from tests.formats import write_deepspeed, write_megatron
from tests.formats.llama import Sizes, Trained, trained

SIZES = Sizes(layers=2, hidden=16, heads=4, kv_heads=4, ffn=24, vocab=32)
"""Small, so that a damaged one is read in milliseconds."""


def _state_dict(model: Trained) -> dict:
    numbers = {name: i for i, name in enumerate(model.weight)}
    state = {
        i: {"step": torch.tensor(float(model.step)), "exp_avg": model.exp_avg[n],
            "exp_avg_sq": model.exp_avg_sq[n]}
        for n, i in numbers.items()
    }  # fmt: skip
    group = {"params": list(numbers.values()), "lr": model.lr, "betas": model.betas,
             "eps": model.eps, "weight_decay": model.weight_decay}  # fmt: skip
    return {"state": state, "param_groups": [group]}


def _config(folder: Path, model: Trained) -> None:
    (folder / "config.json").write_text(json.dumps(model.sizes.config))


def safetensors(folder: Path, model: Trained) -> None:
    """Two shards with an index, and named optimizer states."""
    names = list(model.weight)
    cut = len(names) // 2
    files = {f"model-0000{i + 1}-of-00002.safetensors": part for i, part in
             enumerate((names[:cut], names[cut:]))}  # fmt: skip
    for file, mine in files.items():
        save_file({n: model.weight[n] for n in mine}, folder / file)
    index = {"weight_map": {n: file for file, mine in files.items() for n in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    states = {
        f"{n}.{s}": t
        for s, mine in model.states().items()
        if s != "weight"
        for n, t in mine.items()
    }
    told = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": model.step}
    save_file(states, folder / "optimizer.safetensors", {k: str(v) for k, v in told.items()})


def torch_save(folder: Path, model: Trained) -> None:
    """Model and optimizer in one file."""
    torch.save({"model": model.weight, "optimizer": _state_dict(model)}, folder / "ckpt.pt")


def torch_legacy(folder: Path, model: Trained) -> None:
    """The same, as torch before 1.6 wrote it."""
    saved = {"model": model.weight, "optimizer": _state_dict(model)}
    torch.save(saved, folder / "ckpt.pt", _use_new_zipfile_serialization=False)


def trainer(folder: Path, model: Trained) -> None:
    """Weights in safetensors, the optimizer in a file of its own."""
    save_file(model.weight, folder / "model.safetensors")
    torch.save(_state_dict(model), folder / "optimizer.pt")


def megatron(**how: Any) -> Callable[[Path, Trained], None]:
    """Divided by tensor and pipeline parallelism."""
    return lambda folder, model: write_megatron.write(folder, model, write_megatron.How(**how))


def zero(stage: int, world: int, **more: Any) -> Callable[[Path, Trained], None]:
    """Partitioned over ranks, so that parameters are cut in the middle of rows."""
    if stage == 3:
        return lambda folder, model: write_deepspeed.zero3(folder, model, world)
    return lambda folder, model: write_deepspeed.zero12(folder, model, world, stage=stage, **more)


def _by_name(model: Trained) -> dict[str, Any]:
    """The optimizer's state by parameter name."""
    state = {
        n: {"exp_avg": model.exp_avg[n], "exp_avg_sq": model.exp_avg_sq[n],
            "step": torch.tensor(float(model.step))}
        for n in model.weight
    }  # fmt: skip
    hyper = {"lr": model.lr, "betas": model.betas, "eps": model.eps}
    group = {"params": list(model.weight), "weight_decay": model.weight_decay, **hyper}
    return {"state": state, "param_groups": [group]}


def distributed(folder: Path, model: Trained) -> None:
    """Torch's distributed checkpoint, from one process."""
    state = {"model": model.weight, "optim": _by_name(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, sync_files=False))


def olmo(folder: Path, model: Trained) -> None:
    """Keys are pickled paths in base64, as olmo/safetensors_util.py writes them."""

    def encoded(path: tuple[Any, ...], pickled: bool) -> str:
        return base64.urlsafe_b64encode(pickle.dumps((path, pickled))).decode()

    held = {encoded((n,), False): t for n, t in model.weight.items()}
    save_file(held, folder / "model.safetensors")
    said = _by_name(model)
    held = {
        encoded(("state", n, kind), False): t
        for n, mine in said["state"].items() for kind, t in mine.items()
    }  # fmt: skip
    raw = torch.frombuffer(bytearray(pickle.dumps(said["param_groups"])), dtype=torch.uint8)
    save_file(held | {encoded(("param_groups",), True): raw}, folder / "optim.safetensors")


LAYOUTS: dict[str, Callable[[Path, Trained], None]] = {
    "safetensors": safetensors,
    "torch": torch_save,
    "torch before 1.6": torch_legacy,
    "Trainer": trainer,
    "Megatron, TP 2 × PP 2": megatron(tp=2, pp=2),
    "Megatron core": megatron(tp=2, core=True),
    "Megatron, distributed optimizer": megatron(tp=2, optimizer="flat"),
    "DeepSpeed ZeRO-1": zero(1, 3),
    "DeepSpeed ZeRO-2": zero(2, 3),
    "DeepSpeed ZeRO-3": zero(3, 3),
    "DeepSpeed universal": write_deepspeed.universal,
    "torch distributed": distributed,
    "OLMo": olmo,
}


WITHOUT: dict[str, tuple[str, ...]] = {
    "torch": ("master",),
    "torch before 1.6": ("master",),
    "Trainer": ("master",),
    "DeepSpeed ZeRO-3": ("weight",),
    "torch distributed": ("master",),
    "OLMo": ("master",),
}
"""States that a layout does not store, as its trainer keeps none."""


def write(layout: str, folder: Path, sizes: Sizes = SIZES) -> Trained:
    """Write the model in one of `LAYOUTS`, and give it."""
    model = trained(sizes)
    folder.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout](folder, model)
    return model


def _table() -> None:
    """Print what one layer costs in every layout: ``python -m tests.formats.layouts``."""
    import tempfile

    import analysis360 as a360

    sizes = Sizes(layers=4, hidden=512, heads=8, kv_heads=8, ffn=1408, vocab=2000)
    print("| layout | one layer, MB | read for it | requests | headers: requests, kB |")
    print("|---|---|---|---|---|")
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            model = write(layout, Path(folder) / "step3", sizes)
            run = a360.open_run(folder).select(layers=1)
            plan = a360.plan(run, ["rms", "update_rms"], against=[])
            states = {s for _, s in plan.tensors[0]} - {"step", "master"}
            own = sum(
                t.nbytes for s in states for n, t in getattr(model, s).items() if ".layers.1." in n
            )
            headers = sum(n for *_, n in plan.probes) / 1e3
            print(
                f"| {layout} | {own / 1e6:.2f} | {100 * plan.nbytes / own - 100:+.2f} % "
                f"| {plan.requests} | {len(plan.probes)}, {headers:.0f} |"
            )


if __name__ == "__main__":
    _table()
