"""Checkpoints of ``torch.distributed.checkpoint``: a ``.metadata`` and ``__R_I.distcp`` files.

Each rank writes its pieces, one after the other, into files of its own; the ``.metadata`` says
which box of which tensor each piece, or blob, holds. A blob is a small file of ``torch.save``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from analysis360.core import DTYPE_BYTES, Adam, Part, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.dcp_metadata import (
    Blob,
    Chunk,
    Metadata,
    Path,
    Saved,
    SavedTensor,
    read_metadata,
)
from analysis360.formats.inert import StoredTensor, kind
from analysis360.formats.layout import Assembly
from analysis360.formats.sharded import base_name
from analysis360.formats.torch_file import NotTorch, TorchFile, open_torch
from analysis360.storage.base import Store
from analysis360.storage.memory import adam_of

__all__ = ["DcpFormat"]

_END = ".distcp"
_TAIL = 2048  # bytes at a blob's end; the directory that torch.save writes takes about 700
_ALIGNMENT = 64  # of the data in a blob, as torch.save writes it
_STATES = {
    "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "step", "master": "master",
    "master_param": "master", "master_weight": "master", "fp32_param": "master",
}  # fmt: skip
_WEIGHTS = {"model", "module", "state_dict", "model_state_dict", "model_state", "weights"}
_OPTIMIZER = {
    "optim", "optimizer", "optimizers", "optim_state_dict", "optimizer_state_dict",
    "optimizer_state",
}  # fmt: skip
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.|^module\."
)
_NUMBERS = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")  # of layers and experts, not the 1 of "w1"
_HYPER = ("betas", "eps", "weight_decay", "lr")
_GROUPS = 16  # parameter groups whose list of parameters may be read, to find the largest


class DcpFormat(Format):
    """Weights and optimizer states of ``torch.distributed.checkpoint``, from any number of ranks.

    Read are ``.metadata`` and ``*.distcp`` at the top of a checkpoint or in its folders
    (``model_and_optim`` of OLMo-core, ``model`` and ``optim``, ``pytorch_model_fsdp_0`` and
    ``optimizer_0`` of accelerate), of any torch since 2.0. Weights are what was saved under
    ``model`` or at the top; moments, steps and hyper-parameters what was saved under ``optim`` or
    ``optimizer``, flattened or not.

    Not read are compressed checkpoints, and those that each rank wrote a ``__R.metadata`` for.
    Those in safetensors files have no ``.metadata`` and are not of this format.
    """

    name = "dcp"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a rank's file, at the top or in a folder."""
        return bool(_folders(files))

    def index(self, store: Store) -> Index:
        """List the tensors of all folders.

        Raises
        ------
        FormatError
            If a ``.metadata`` is missing, damaged or says what cannot be true, if chunks overlap or
            leave a part of a tensor out, or if no tensor is there.
        """
        reader = HeaderReader(store)
        found = _Found(reader)
        for folder in _folders(reader.files):
            if f"{folder}.metadata" not in reader.files:
                raise FormatError(f"{store.uri}: {folder}.metadata is missing beside {_END} files")
            found.add(read_metadata(reader, f"{folder}.metadata"))
        return found.index()


formats.add("dcp", DcpFormat())


def _folders(files: Mapping[str, int]) -> list[str]:
    """Folders with files of ranks, with a slash at the end; the top is the empty text."""
    own = (path for path in files if path.endswith(_END) and path.count("/") <= 1)
    return sorted({path[: -len(base_name(path))] for path in own})


# What a path in the saved state dict means


@dataclass(frozen=True, slots=True)
class _Role:
    """What an entry is: a tensor's `state` (or ``"group"``), and the parameter's name.

    Of a group's entry the name is ``"<group>.<hyper-parameter>"``, or empty.
    """

    state: str
    name: str


def _paths(said: Metadata) -> dict[str, Path]:
    """Path of every key.

    Where the writer did not flatten, dots are all there is: what begins like an optimizer is one,
    and a weight is below ``model`` if the optimizer has the rest of its name.
    """
    paths = {tensor.key: tensor.path for tensor in said.tensors}
    paths |= {saved.key: saved.path for saved in said.objects}
    if said.flattened:
        return paths
    cut = {key: key.partition(".")[::2] for key in paths}
    roles = (_of_optimizer(rest) for head, rest in cut.values() if head in _OPTIMIZER)
    moments = {role.name for role in roles if role is not None}
    for key, (head, rest) in cut.items():
        if head in _OPTIMIZER or (head in _WEIGHTS and _clean(rest) in moments):
            paths[key] = (head, rest)
    return paths


def _role(path: Path) -> _Role | None:
    """What an entry is by its path; None if it is neither the model's nor the optimizer's.

    The first level called like a model or an optimizer decides, so that ``app.model`` is one too.
    """
    levels = [str(level) for level in path]
    for i, level in enumerate(levels[:-1]):
        if level in _OPTIMIZER:
            return _of_optimizer(".".join(levels[i + 1 :]))
        if level in _WEIGHTS:
            return _Role("weight", _clean(".".join(levels[i + 1 :])))
    found = _of_optimizer(".".join(levels))
    if found is None and len(levels) == 1:
        return _Role("weight", _clean(levels[0]))
    return found


def _of_optimizer(key: str) -> _Role | None:
    """What an entry of an optimizer's state dict is; a number before it is that of a list."""
    first, _, rest = key.partition(".")
    head, _, body = (rest if first.isdecimal() else key).partition(".")
    if head == "param_groups":
        return _Role("group", body)
    name, _, state = body.rpartition(".")
    if head == "state" and state not in _STATES:  # Megatron's state.exp_avg.<name>
        state, _, name = body.partition(".")
    if head != "state" or state not in _STATES or not name:
        return None
    return _Role(_STATES[state], _clean(name))


def _clean(name: str) -> str:
    """Name of a parameter without those of modules that are wrapped around others."""
    return _WRAPPERS.sub("", name)


# Where in a blob the data begin


@dataclass(frozen=True, slots=True)
class _Like:
    """What blobs have in common whose data begin at the same byte of the blob, in the same order.

    A blob is a zip file: a pickle, some records of a few bytes, the data at the next multiple of
    64, and a directory. Of one dtype and one number of bytes everything but the pickle has a fixed
    length, and a longer pickle moves data and directory by the same multiple of 64, or is taken up
    by the padding and moves neither. So blobs of equal length and equal data have their data at the
    same place, and one directory tells it for all of them, however many ranks wrote.

    It doesn't tell the order of the elements: `torch.save` keeps a dense transposed view as it is,
    in a pickle of the same length. That depends on the module, so pieces with two or more
    dimensions share only with those of the same name but for the numbers of layers and experts.
    """

    nbytes: int
    dtype: str
    sides: tuple[int, ...]
    module: str


def _like(tensor: SavedTensor, chunk: Chunk) -> _Like:
    ordered = sum(n > 1 for n in chunk.sides) < 2
    module = "" if ordered else _NUMBERS.sub("#", tensor.key)
    return _Like(chunk.blob.nbytes, tensor.dtype, chunk.sides, module)


@dataclass(frozen=True, slots=True)
class _Inside:
    """Byte of a blob at which the data begin, and their strides, or why they aren't read."""

    start: int = 0
    stride: tuple[int, ...] | None = None
    why: str = ""


def _look_inside(reader: HeaderReader, where: str, one: tuple[SavedTensor, Chunk]) -> _Inside:
    """Read the directory and the pickle of one blob: two requests, of 2.6 kB together."""
    tensor, chunk = one
    where, blob = f"{where}: {tensor.key!r}", chunk.blob
    file = _open(reader, blob, where)
    value = file.root
    if not isinstance(value, StoredTensor):
        return _Inside(why=f"its pieces are not plain tensors but {kind(value)}")
    if (value.dtype, value.shape) != (tensor.dtype, chunk.sides):
        raise FormatError(
            f"{where}: a chunk of {list(chunk.sides)} of {tensor.dtype}, in {blob.file} it is "
            f"{list(value.shape)} of {value.dtype}"
        )
    why = file.why_unread(value)
    part = None if why else file.part(value, tensor.key)
    if part is None:
        return _Inside(why=why)
    size = DTYPE_BYTES[value.dtype]
    nbytes, start = part.nbytes, part.offset - blob.offset
    stored = value.storage.numel * DTYPE_BYTES[value.storage.dtype]
    # Storages of any other length would break the argument of `_Like`; writers copy views first.
    if nbytes != math.prod(chunk.sides) * size or stored != nbytes or value.offset:
        return _Inside(why=f"its pieces are views of {stored} bytes, not tensors of their own")
    if start % _ALIGNMENT or start + nbytes > blob.nbytes:
        raise FormatError(f"{where}: its data in {blob.file} begin at byte {start} of the blob")
    return _Inside(start, part.stride)


def _open(reader: HeaderReader, blob: Blob, where: str) -> TorchFile:
    """Open a blob; errors name the key, as thousands of blobs are in one file."""
    try:
        return open_torch(reader, blob.file, blob.offset, blob.nbytes, _TAIL)
    except NotTorch:
        raise FormatError(
            f"{where}: bytes {blob.offset}…{blob.offset + blob.nbytes} of {blob.file} are not what "
            "torch.save writes"
        ) from None
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None


# The whole checkpoint


class _Found:
    """Gathers what the folders of one checkpoint hold."""

    def __init__(self, reader: HeaderReader) -> None:
        self.reader, self.where = reader, reader.store.uri
        self.kept: dict[tuple[str, str], SavedTensor] = {}
        self.others: list[SavedTensor] = []
        self.groups: dict[str, dict[str, Saved | SavedTensor]] = {}
        self.counts: list[Saved | SavedTensor] = []
        self.skipped: list[tuple[str, str]] = []
        self.tensors: list[TensorInfo] = []

    def add(self, said: Metadata) -> None:
        """Take the entries of one ``.metadata``."""
        self.skipped += said.skipped
        paths = _paths(said)
        entries: list[Saved | SavedTensor] = [*said.tensors, *said.objects]
        for entry in entries:
            path = paths[entry.key]
            role = _role(path)
            scalar = isinstance(entry, Saved) or not entry.shape
            if role is not None and role.state == "group":
                group, _, hyper = role.name.rpartition(".")
                self.groups.setdefault(_clean(group), {})[hyper] = entry
            elif scalar and _is_count(path, role):
                self.counts.append(entry)
            elif isinstance(entry, Saved):
                self.skipped.append((entry.key, "an object, not a tensor"))
            elif role is None:
                self.others.append(entry)
            elif role.name.isdecimal():
                why = "its parameter has a number, and nothing here says the order"
                self.skipped.append((entry.key, why))
            else:
                self._keep(role, entry)

    def _keep(self, role: _Role, tensor: SavedTensor) -> None:
        other = self.kept.setdefault((role.name, role.state), tensor)
        if other is not tensor:
            raise FormatError(
                f"{self.where}: {tensor.key!r} and {other.key!r} are both {role.name} "
                f"({role.state})"
            )

    def index(self) -> Index:
        """Place every tensor."""
        if not self.kept:  # no level is called like a model: take what there is
            self.kept = {(_clean(t.key), "weight"): t for t in self.others if t.shape}
            self.others = [tensor for tensor in self.others if not tensor.shape]
        if not self.kept:
            why = "; ".join(f"{key}: {reason}" for key, reason in self.skipped[:3])
            raise FormatError(f"{self.where}: no tensor in its .metadata ({why})")
        why = "neither a weight nor a state of the optimizer that is measured"
        self.skipped += [(tensor.key, why) for tensor in self.others]
        self._place()
        return Index(
            tuple(self.tensors), self._adam(), self._step(), tuple(self.skipped),
            self.reader.probes,
        )  # fmt: skip

    def _place(self) -> None:
        """Make the tensors, each of the parts that its blobs hold."""
        insides = self._insides(self.kept.values())
        for (name, state), tensor in self.kept.items():
            reasons = (insides[_like(tensor, chunk)].why for chunk in tensor.chunks)
            why = next(filter(None, reasons), "")
            if why:
                self.skipped.append((tensor.key, why))
                continue
            if 0 in tensor.shape:
                empty = TensorInfo(name, tensor.key, state, tensor.shape, tensor.dtype, ())
                self.tensors.append(empty)
            elif not tensor.chunks:
                raise FormatError(f"{self.where}: {tensor.key!r} has elements, but no chunk")
            made = Assembly(self.where)
            for chunk in tensor.chunks:
                part = _part(tensor, chunk, insides[_like(tensor, chunk)])
                made.put(name, state, tensor.key, tensor.shape, part)
            self.tensors += made.tensors()

    def _insides(self, tensors: Iterable[SavedTensor]) -> dict[_Like, _Inside]:
        """Look into one blob of each kind."""
        first: dict[_Like, tuple[SavedTensor, Chunk]] = {}
        for tensor in tensors:
            for chunk in tensor.chunks:
                first.setdefault(_like(tensor, chunk), (tensor, chunk))
        look = partial(_look_inside, self.reader, self.where)
        with ThreadPoolExecutor(8) as pool:  # against latency, as in other formats
            return dict(zip(first, pool.map(look, first.values()), strict=True))

    def _step(self) -> int | None:
        """Steps taken: the optimizer's, else the trainer's."""
        stored = (t for t in self.tensors if t.state == "step" and t.numel == 1)
        values = (_number(self.reader, t.parts[0]) for t in itertools.islice(stored, 1))
        for value in itertools.chain(values, map(self._value, self.counts)):
            if isinstance(value, (int, float)) and 0 <= value < 2**53:
                return int(value)
        return None

    def _adam(self) -> Adam | None:
        """Hyper-parameters of the group with the most elements in matrices."""
        if "" in self.groups.get("", {}):  # the whole list is one object
            listed = self._value(self.groups[""][""])
            listed = [g for g in listed if isinstance(g, dict)] if isinstance(listed, list) else []
            return adam_of((group, self._elements(group.get("params"))) for group in listed)
        if not self.groups:
            return None
        group = max(self.groups, key=self._weight)
        entries = self.groups[group]
        told = {name: self._value(entries[name]) for name in _HYPER if name in entries}
        return adam_of([(told, 1.0)])

    def _weight(self, group: str) -> float:
        """Elements in the matrices of a group, which is a parameter's name or a number."""
        if not group.isdecimal():
            return self._elements([group])
        entry = self.groups[group].get("params")
        return self._elements(self._value(entry)) if entry and len(self.groups) <= _GROUPS else 0.0

    def _elements(self, params: Any) -> float:
        total = 0
        for name in params if isinstance(params, list) else []:
            found = self.kept.get((_clean(name), "exp_avg")) if isinstance(name, str) else None
            if found is not None and len(found.shape) >= 2:
                total += math.prod(found.shape)
        return float(total)

    def _value(self, entry: Saved | SavedTensor) -> Any:
        """Read a small object, or a tensor of one element; None if it is neither."""
        where = f"{self.where}: {entry.key!r}"
        if isinstance(entry, Saved):
            return _open(self.reader, entry.blob, where).root
        if entry.shape or len(entry.chunks) != 1:
            return None
        inside = _look_inside(self.reader, self.where, (entry, entry.chunks[0]))
        if inside.why:
            return None
        return _number(self.reader, _part(entry, entry.chunks[0], inside))


def _is_count(path: Path, role: _Role | None) -> bool:
    """Whether an entry counts the trainer's steps: ``step``, or ``train_state.step``."""
    mine = role is None or role.state == "weight"
    return mine and len(path) <= 2 and path[-1] in ("step", "global_step", "iteration")


def _part(tensor: SavedTensor, chunk: Chunk, inside: _Inside) -> Part:
    nbytes = math.prod(chunk.sides) * DTYPE_BYTES[tensor.dtype]
    at = chunk.blob.offset + inside.start
    return Part(chunk.blob.file, at, nbytes, tensor.dtype, box=chunk.box, stride=inside.stride)


def _number(reader: HeaderReader, part: Part) -> float | None:
    """Value of a scalar."""
    import numpy as np

    if part.dtype not in ("float32", "float64", "int64", "int32"):
        return None
    value = float(np.frombuffer(reader.read(part.file, part.offset, part.nbytes), part.dtype)[0])
    return value if np.isfinite(value) else None
