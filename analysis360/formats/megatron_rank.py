"""One rank of a Megatron checkpoint: its files, its arguments and the parameters of its model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.inert import StoredTensor, short
from analysis360.formats.megatron_names import Model, Settings, read_model
from analysis360.formats.optimizer import Order
from analysis360.formats.torch_file import TorchFile, open_torch

__all__ = ["FLAT", "MAIN", "RANK_FILE", "Param", "Rank", "open_rank", "places"]

RANK_FILE = re.compile(
    r"(?P<folder>(?P<top>(?:iter_\d+|release)/)?mp_rank_(?P<tp>\d{1,5})(?:_(?P<pp>\d{1,5}))?"
    r"(?P<more>_\d+)?/)(?:model_optim_rng|distrib_optim)\.pt"
)
MAIN, FLAT = "model_optim_rng.pt", "distrib_optim.pt"
_DEPTH = 8  # of dictionaries in the model's state; Megatron has three


@dataclass(frozen=True)
class Param:
    """One parameter of a rank's model; `key` is its place in the file, `name` that in the model."""

    key: str
    name: str
    value: StoredTensor


@dataclass
class Rank:
    """One rank's file, and what it holds."""

    tp: int
    pp: int
    file: TorchFile
    root: dict[Any, Any]
    args: Settings
    model: Model
    step: int | None
    chunks: list[list[Param]]
    flat: TorchFile | None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def params(self) -> Iterator[Param]:
        """Of all chunks, in the order of the model."""
        return (param for chunk in self.chunks for param in chunk)


def places(uri: str, files: Mapping[str, int]) -> list[tuple[int, int, str]]:
    """Tensor rank, pipeline stage and folder of each rank, by stage."""
    matches = [m for path in files if (m := RANK_FILE.fullmatch(path))]
    tops = sorted({m["top"] or "" for m in matches})
    if len(tops) > 1:
        names = ", ".join(top or "its top" for top in tops[:5])
        raise FormatError(f"{uri}: holds checkpoints in {names}; open one of them")
    found: dict[tuple[int, int], str] = {}
    for m in sorted(matches, key=lambda m: str(m["folder"])):
        if m["more"]:
            raise FormatError(f"{uri}: {m['folder']}: experts that are divided are not read")
        rank = int(m["pp"] or 0), int(m["tp"])
        if found.setdefault(rank, m["folder"]) != m["folder"]:
            raise FormatError(f"{uri}: {found[rank]} and {m['folder']} are the same rank")
    return [(tp, pp, folder) for (pp, tp), folder in sorted(found.items())]


def open_rank(reader: HeaderReader, tp: int, pp: int, folder: str) -> Rank:
    """Read what one rank's files say."""
    path = f"{folder}{MAIN}"
    if path not in reader.files:
        raise FormatError(f"{reader.store.uri}: {path} is missing")
    file = open_torch(reader, path)
    root = file.root
    if not isinstance(root, dict):
        raise FormatError(f"{file.where}: holds a {type(root).__name__}, not Megatron's dictionary")
    args = Settings(file.where, root.get("args"))
    version = root.get("checkpoint_version", 0)
    if not isinstance(version, (int, float)) or not 2 <= version < 4:
        raise FormatError(
            f"{file.where}: 'checkpoint_version' is {short(version)}; 2 and 3 are read"
        )
    if args.count("expert_model_parallel_size", 1) > 1:
        raise FormatError(f"{file.where}: experts that are divided are not read")
    step = root.get("iteration")
    if step is not None and (type(step) is not int or step < 0):
        raise FormatError(f"{file.where}: 'iteration' is {short(step)}, not a number of steps")
    flat = f"{folder}{FLAT}"
    rank = Rank(
        tp, pp, file, root, args, read_model(args), step, [],
        open_torch(reader, flat) if flat in reader.files else None,
    )  # fmt: skip
    keys = ["model"]
    if "model" not in root:  # the interleaved pipeline has several pieces of the model a rank
        keys = [key for i in range(len(root)) if (key := f"model{i}") in root]
    if not keys or not all(isinstance(root[key], dict) for key in keys):
        raise FormatError(f"{file.where}: 'model' is missing, or not a dictionary")
    rank.chunks = [_params(rank, root[key], key) for key in keys]
    return rank


def _params(rank: Rank, model: Mapping[Any, Any], top: str) -> list[Param]:
    """Parameters of nested state dicts, in stored order; the rest is noted."""
    found: list[Param] = []
    order, seen = Order(), set[int]()

    def visit(held: Mapping[Any, Any], prefix: str, depth: int) -> None:
        if depth > _DEPTH or id(held) in seen:
            raise FormatError(f"{rank.file.where}: {top}.{prefix}: dictionaries within each other")
        seen.add(id(held))
        for key, value in held.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                visit(value, f"{name}.", depth + 1)
                continue
            before = len(order.names)
            if isinstance(value, StoredTensor):
                order.append(name, value.shape, value.dtype)
            if len(order.names) > before:
                found.append(Param(f"{top}.{name}", name, value))
            else:
                rank.skipped.append((f"{top}.{name}", "not a parameter of the model"))

    visit(model, "", 0)
    return found
