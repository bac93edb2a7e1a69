"""DeepSpeed's universal checkpoints: one file for each parameter and state.

``zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt``, beside the model files of the ranks, which
hold the 16-bit weights, as ``deepspeed/checkpoint/ds_to_universal.py`` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from analysis360.core import Adam, Part, TensorInfo
from analysis360.errors import FormatError
from analysis360.formats.base import Format, HeaderReader, Index, formats
from analysis360.formats.deepspeed_files import Files, by_threads, find_files, kinds
from analysis360.formats.deepspeed_model import Model, adam_of_groups, add_weights, open_model
from analysis360.formats.fields import Fields, kind, read_number
from analysis360.formats.inert import StoredTensor
from analysis360.formats.layout import Assembly
from analysis360.formats.torch_file import TorchFile, open_torch
from analysis360.storage.base import Store

__all__ = ["UniversalFormat"]

_SMALL = 32_768  # bytes: a file of that size is read at once, instead of its end and its beginning
_TAIL = 2048  # bytes: the directory of a file of one tensor has about 700
_STATES = {"fp32": "master", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class UniversalFormat(Format):
    """Universal checkpoints of DeepSpeed: masters and moments by parameter.

    Each tensor is a file of its own, so the index takes two small requests for each large one and
    one for each small one, several at a time. Weights are those of the model files beside them.
    """

    name = "deepspeed-universal"

    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether there is a file of one parameter's state."""
        return "universal" in kinds(files)

    def index(self, store: Store) -> Index:
        """List the tensors of all files.

        Raises
        ------
        FormatError
            If a file is damaged or holds something else, or there are several checkpoints.
        """
        reader = HeaderReader(store)
        files = find_files(store.uri, reader.files)
        model = open_model(reader, files)
        wanted = _wanted(files, model)
        read = by_threads(lambda at: _read(reader, files.universal[at], *at), wanted)
        found = [_shaped(model, held) for held in read]
        made = Assembly(store.uri)
        add_weights(reader, files, model, made)
        rows = {h.name: h.info.shape[0] for h in found if h.cut_rows and h.info.shape}
        weights = [_cut(t, rows) for t in made.tensors()]
        told = {held.name for held in found if held.info.state == "master"}
        for name in model.names:
            if name not in told:
                model.skipped.append((name, f"no zero/{name}/fp32.pt"))
        settings = _settings(reader, files)
        return Index(
            (*weights, *(held.info for held in found)), _adam(model, settings),
            _step(reader, files, model), tuple(dict.fromkeys(model.skipped)), reader.probes,
        )  # fmt: skip


formats.add("deepspeed-universal", UniversalFormat())


def _wanted(files: Files, model: Model) -> list[tuple[str, str]]:
    """Parameters and states to read; newer converters store tied names and buffers too."""
    found: list[tuple[str, str]] = []
    for name, state in files.universal:
        why = model.no_parameter(name) if state in _STATES else ""
        if why:
            model.skipped.append((name, why))
        elif state in _STATES:
            found.append((name, state))
    return found


@dataclass(frozen=True)
class _Held:
    """One file's tensor; `cut_rows` if rows that fill up the vocabulary were left out of it."""

    name: str
    info: TensorInfo
    cut_rows: bool


def _open(reader: HeaderReader, path: str) -> TorchFile:
    size = reader.files[path]
    return open_torch(reader, path, tail=size if size <= _SMALL else _TAIL)


def _read(reader: HeaderReader, path: str, name: str, state: str) -> _Held:
    file = _open(reader, path)
    told = file.root if isinstance(file.root, dict) else {"param": file.root}
    value, cut_rows = told.get("param"), told.get("vocab_tensor") is True
    if not isinstance(value, StoredTensor):
        raise FormatError(f"{file.where}: 'param' is {kind(value)}, not a tensor")
    why = file.why_unread(value)
    if why:
        raise FormatError(f"{file.where}: 'param': {why}")
    part = file.part(value, "param")
    parts = () if part is None else (part,)
    info = TensorInfo(name, path, _STATES[state], value.shape, value.dtype, parts)
    return _Held(name, info, cut_rows)


def _shaped(model: Model, held: _Held) -> _Held:
    """Give a tensor the module's name, and its shape where it was stored flat, as from ZeRO 3."""
    info = replace(held.info, name=model.named(held.name))
    told = model.full_shape(held.name)
    if told is None or told == info.shape or held.cut_rows:
        return replace(held, info=info)
    flat = len(info.shape) == 1 and math.prod(told) == info.shape[0]
    if not flat or any(part.flat is None for part in info.parts):
        raise FormatError(
            f"{model.uri}: {info.key}: {list(info.shape)}, but param_shapes says {list(told)}"
        )
    return replace(held, info=replace(info, shape=told))


def _cut(weight: TensorInfo, rows: Mapping[str, int]) -> TensorInfo:
    """Leave out the rows that fill up the vocabulary, as they are left out of the master."""
    count = rows.get(weight.key)
    if count is None or not weight.shape or weight.shape[0] <= count:
        return weight
    parts: list[Part] = []
    for part in weight.parts:
        kept = part.rows(weight.shape, 0, count)
        if kept is not None:
            parts.append(kept)
    return replace(weight, shape=(count, *weight.shape[1:]), parts=tuple(parts))


def _settings(reader: HeaderReader, files: Files) -> Fields:
    if files.settings is None:
        return Fields({}, reader.store.uri)
    file = open_torch(reader, files.settings)
    return Fields(file.root, file.where)


def _adam(model: Model, settings: Fields) -> Adam | None:
    if settings.get("param_groups") is None:
        return None
    return adam_of_groups(model, 0, list(settings.each("param_groups")), settings)


def _step(reader: HeaderReader, files: Files, model: Model) -> int | None:
    """Steps as one of the parameters has them: they are the same for all."""
    for at in sorted(files.universal):
        if at[1] == "step":
            file = _open(reader, files.universal[at])
            step = read_number(reader, file, file.root, "step")
            if step is not None:
                return int(step)
            break
    return next((m.step for m in model.files if m.step is not None), None)
