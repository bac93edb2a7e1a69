"""Checkpoints as ``torch.save`` writes them: weights, and the optimizer's state, in plain files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis360.core import TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.inert import StoredTensor
from analysis360.formats.inert import kind as kind_of
from analysis360.formats.optimizer import Order, read_optimizer
from analysis360.formats.sharded import (
    base_name,
    check_shard,
    is_optimizers,
    is_trainers,
    own_files,
    shards_of,
)
from analysis360.formats.torch_file import NotTorch, TorchFile, open_torch
from analysis360.names import find_family, model_order
from analysis360.storage.base import Store
from analysis360.storage.memory import are_tied

__all__ = ["TorchFormat"]

_ENDS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".bin.index.json")
_NOT_TENSORS = ("training_args", "scheduler", "rng_state", "random_states", "tokenizer", "scaler")
_WEIGHTS = (
    "model", "state_dict", "model_state_dict", "module", "model_state", "weights", "net",
    "model_states",
)  # fmt: skip
_OPTIMIZER = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizer_states")
_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_STEPS = ("global_step", "step", "iteration", "iter", "global_steps", "iteration_number")


class TorchFormat(Format):
    """Weights and optimizer states in ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` and ``.tar`` files.

    Weights are looked for at the top of the file and under the usual keys (``model``,
    ``state_dict`` …), single or sharded with a ``*.bin.index.json``. The optimizer's state is
    given the names of the weights, by order, with every shape checked: the order of the same file,
    else that of the checkpoint's one other torch file, else (of several files, or safetensors,
    which keep none) that of the model's family. Views are
    read by the span of their storage, expanded ones are left out. Both of torch's layouts are
    read: zip files, and those from before torch 1.6.
    """

    name = "torch"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a file that may be one of torch's."""
        return bool(_candidates(files))

    def index(self, store: Store) -> Index:
        """List the tensors of all files.

        Raises
        ------
        FormatError
            If a file is damaged, or none of the files holds tensors and no other format is there.
        """
        reader = HeaderReader(store)
        own = _candidates(reader.files)
        shards = shards_of(reader, (p for p in own if p.endswith(".json")))
        paths = sorted({*shards, *(p for p in own if not p.endswith(".json"))})
        found = _Found(reader)
        opened = [file for path in paths if (file := _open(reader, path, found)) is not None]
        for file in opened:
            for index, keys in shards.get(file.path, {}).items():
                check_shard(store.uri, index, file.path, set(file.weights), keys)
        for file in sorted(opened, key=lambda file: file.is_optimizer):  # names come from weights
            found.add(file)
        others = own_files(reader.files, (".safetensors",))
        elsewhere = bool(others) or any(map(is_trainers, reader.files))
        if not found.tensors and not elsewhere:
            why = "; ".join(f"{key}: {reason}" for key, reason in found.skipped[:3])
            raise FormatError(f"{store.uri}: no tensor in {', '.join(paths[:5])} ({why})")
        return found.index()


formats.add("torch", TorchFormat())


def _candidates(files: Mapping[str, int]) -> list[str]:
    own = [
        p for p in own_files(files, _ENDS)
        if not base_name(p).startswith(_NOT_TENSORS) and not is_trainers(p)
    ]  # fmt: skip
    if _has_safetensors(files):  # many repositories hold the same weights in both formats
        own = [p for p in own if not base_name(p).startswith("pytorch_model")]
    return own


def _has_safetensors(files: Mapping[str, int]) -> bool:
    """Whether weights are there as safetensors; an adapter's are weights of something else."""
    return any(
        not is_optimizers(p) and not base_name(p).startswith("adapter")
        for p in own_files(files, (".safetensors",))
    )


@dataclass
class _Opened:
    """What one file is taken for."""

    file: TorchFile
    weights: dict[str, Any]
    is_optimizer: bool

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def root(self) -> Any:
        return self.file.root


def _open(reader: HeaderReader, path: str, found: _Found) -> _Opened | None:
    """Read one file's pickle; None with a reason noted if it isn't one of torch's."""
    try:
        file = open_torch(reader, path)
    except NotTorch:
        found.skipped.append((path, "not a file of torch.save"))
        return None
    root = file.root
    optimizer = isinstance(root, dict) and "param_groups" in root and "state" in root
    return _Opened(file, {} if optimizer else _weights(root), optimizer)


def _weights(root: Any, depth: int = 3) -> dict[str, Any]:
    """Find the state dict: under the usual keys first, else the object itself."""
    if not isinstance(root, dict):
        return {}
    if depth:
        for key in _WEIGHTS:
            nested = _weights(root.get(key), depth - 1)
            if nested:
                return nested
    if any(isinstance(v, StoredTensor) and isinstance(k, str) for k, v in root.items()):
        return {k: v for k, v in root.items() if isinstance(k, str)}
    return {}


class _Found:
    """Gathers what the files of one checkpoint hold."""

    def __init__(self, reader: HeaderReader) -> None:
        self.reader = reader
        self.tensors: dict[tuple[str, str], TensorInfo] = {}
        self.skipped: list[tuple[str, str]] = []
        self.adam, self.step = None, None  # type: Any, int | None
        self.order = Order()
        self._more: tuple[tuple[str, int, int], ...] = ()

    def index(self) -> Index:
        return Index(
            tuple(self.tensors.values()), self.adam, self.step, tuple(self.skipped),
            tuple(sorted(self.reader.probes + self._more)),
        )  # fmt: skip

    def add(self, file: _Opened) -> None:
        """Take weights, then the optimizer, of one file."""
        order = self._add_weights(file)
        if file.is_optimizer:
            self._add_optimizer(file, file.root, self._order_of_others())
        elif isinstance(file.root, dict):
            for key in _OPTIMIZER:
                state = file.root.get(key)
                if isinstance(state, list) and len(state) == 1:  # Lightning keeps a list
                    state = state[0]
                if isinstance(state, list) and state:
                    why = f"{len(state)} optimizers, and which parameters each has is not told"
                    self.skipped.append((f"{file.path}: {key}", why))
                if isinstance(state, dict):
                    self._add_optimizer(file, state, order)
            for key in _STEPS:
                value = file.root.get(key)
                if self.step is None and type(value) is int and value >= 0:
                    self.step = value

    def _add_weights(self, file: _Opened) -> Order:
        order, places = Order(), {}  # type: Order, dict[StoredTensor, str]
        prefix = _common_prefix(file.weights)
        for key, value in file.weights.items():
            name = key.removeprefix(prefix)
            if not isinstance(value, StoredTensor):
                self.skipped.append((key, f"not a dense tensor but {kind_of(value)}"))
                continue
            tied = places.get(value)
            if tied is not None and are_tied(tied, name):
                self.skipped.append((key, f"shares storage with {tied}"))
                continue
            places.setdefault(value, name)
            order.append(name, value.shape, value.dtype)
            self._put(file, name, key, "weight", value)
        self.order.names += order.names
        self.order.shapes += order.shapes
        return order

    def _order_of_others(self) -> Order:
        """Parameters of the checkpoint in their order, for an optimizer in a file of its own.

        One torch file keeps the order. Several don't (``layer_10`` is listed before ``layer_2``),
        and safetensors files don't: there it is that of the family, as models of transformers have
        it.
        """
        weights = [t for t in self.tensors.values() if t.state == "weight"]
        files = {part.file for t in weights for part in t.parts}
        if len(files) == 1 or not (files or _has_safetensors(self.reader.files)):
            return self.order
        if not files:
            index = formats["safetensors"].index(self.reader.store)
            self._more = index.probes
            weights = [t for t in index.tensors if t.state == "weight"]
        shapes = {t.name: t for t in weights}
        family = find_family(shapes)
        order = Order()
        for name in (model_order(shapes, family) if family else None) or ():
            order.append(name, shapes[name].shape, shapes[name].dtype)
        return order

    def _add_optimizer(self, file: _Opened, state: dict[Any, Any], order: Order) -> None:
        found = read_optimizer(state, order)
        self.skipped += [(f"{file.path}: {key}", why) for key, why in found.skipped]
        self.adam = found.adam if self.adam is None else self.adam.filled(found.adam)
        step = found.step
        known = {*order.names, *(name for name, kind in self.tensors if kind == "weight")}
        for name, key, kind, value in found.tensors:
            bare = _WRAPPERS.sub("", name)  # as weights had one that was dropped
            name = bare if name not in known and bare in known else name
            info = self._put(file, name, key, kind, value)
            if step is None and info is not None and kind == "step":
                step = self._read_step(info)
        if step is None and found.step_tensor is not None:
            info = self._info(file, "", "step", "step", found.step_tensor)
            step = self._read_step(info) if info is not None else None
        if step is not None:
            self.step = step

    def _put(
        self, file: _Opened, name: str, key: str, state: str, value: StoredTensor
    ) -> TensorInfo | None:
        info = self._info(file, name, key, state, value)
        if info is None:
            return None
        before = self.tensors.get((name, state))
        if before is not None:
            other = before.parts[0].file if before.parts else "another file"
            raise FormatError(
                f"{self.reader.store.uri}: {key!r} is both in {other} and {file.path}; if these "
                "are different checkpoints, open the run with a pattern of their names"
            )
        self.tensors[name, state] = info
        return info

    def _info(
        self, file: _Opened, name: str, key: str, state: str, value: StoredTensor
    ) -> TensorInfo | None:
        """Place one tensor in the file; None with a reason noted if that can't be done."""
        why = file.file.why_unread(value)
        if why:
            self.skipped.append((key, why))
            return None
        part = file.file.part(value, key)
        parts = () if part is None else (part,)
        return TensorInfo(name, key, state, value.shape, value.dtype, parts)

    def _read_step(self, info: TensorInfo) -> int | None:
        import numpy as np

        if info.dtype not in ("float32", "float64", "int64", "int32") or info.numel != 1:
            return None
        part = info.parts[0]
        value = np.frombuffer(self.reader.read(part.file, part.offset, part.nbytes), info.dtype)[0]
        return int(value) if np.isfinite(value) and value >= 0 else None


def _common_prefix(weights: Mapping[str, Any]) -> str:
    """Give the prefix that a wrapper put before every name: DataParallel's or torch.compile's."""
    prefix = ""
    for wrapper in ("module.", "_orig_mod.", "module."):
        if weights and all(key.startswith(prefix + wrapper) for key in weights):
            prefix += wrapper
    return prefix
