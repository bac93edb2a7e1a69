"""What a file format must be able to do: say which files are its own, and where tensors lie."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from analysis360.core import Adam, TensorInfo
from analysis360.errors import FormatError
from analysis360.registry import Registry
from analysis360.storage.base import Store

__all__ = ["Format", "HeaderReader", "Heads", "Index", "formats", "index_checkpoint"]

_MOST_STEPS = 2**53

Probe = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of attention heads: of queries, and of keys and values."""

    query: int
    key_value: int


@dataclass(frozen=True)
class Index:
    """What a checkpoint holds, and where.

    Attributes
    ----------
    tensors : tuple of TensorInfo
        Unique in name and state.
    adam : Adam or None
        Hyper-parameters, where the files tell them.
    step : int or None
        Optimizer steps taken, where the files tell.
    skipped : tuple of (str, str)
        Key or file that is left out, and why.
    probes : tuple of (str, int, int)
        File, offset and bytes of every range that was read to make the index.
    heads : Heads or None
        Numbers of attention heads, where the files with the tensors tell them.
    """

    tensors: tuple[TensorInfo, ...]
    adam: Adam | None = None
    step: int | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    probes: tuple[Probe, ...] = ()
    heads: Heads | None = None


class HeaderReader:
    """Reads ranges of a store and remembers which; may be shared by threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = store.files()
        self._probes: list[Probe] = []
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """Read a range; an empty one is no request and no probe."""
        if nbytes == 0:
            return b""
        with self._lock:
            self._probes.append((path, offset, nbytes))
        return self.store.read(path, offset, nbytes)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What was read so far, sorted."""
        with self._lock:
            return tuple(sorted(self._probes))


class Format(ABC):
    """One way in which tensors lie in files.

    A format reads headers only: bytes of tensors are read by the engine, so that merging, resuming
    and sampling exist once. Every range that `index` reads goes through a `HeaderReader`.

    Attributes
    ----------
    name : str
        Name in the registry `formats`.
    """

    name: str

    @abstractmethod
    def matches(self, files: Mapping[str, int]) -> bool:
        """Whether some of these files, given with their sizes, are in this format."""

    @abstractmethod
    def index(self, store: Store) -> Index:
        """List the tensors of a checkpoint.

        Raises
        ------
        FormatError
            If a file says something that cannot be true; the message names file and key.
        StorageError
            If a header cannot be read.
        """


formats: Registry[Format] = Registry("format", FormatError)
"""Formats by name. Where two hold the same tensor, the one registered first is used."""


def index_checkpoint(store: Store, family: str | None = None, *, per_head: bool = False) -> Index:
    """List the tensors of a checkpoint in every format that is found in it.

    Parameters
    ----------
    store : Store
    family : str, optional
        Table of names that tells which matrices are fused; by default the one that fits best.
    per_head : bool
        Divide queries, keys and values by attention head.

    Returns
    -------
    Index
        Tensors of all formats; of a tensor that two formats hold the first is taken and the other
        listed as skipped. Hyper-parameters and step come from whichever file tells them. Fused
        matrices are divided into what they hold.

    Raises
    ------
    FormatError
        If no format knows any of the files, or a file is damaged.

    Examples
    --------
    >>> import torch
    >>> from analysis360.storage.memory import MemoryStore
    >>> store = MemoryStore.from_state_dict({"w": torch.zeros(3, 2)})
    >>> [(t.name, t.state, t.shape) for t in index_checkpoint(store).tensors]
    [('w', 'weight', (3, 2))]
    """
    from analysis360.formats.fused import divide

    return divide(_stored(store), store, family, per_head)


def _stored(store: Store) -> Index:
    """Tensors as they are stored."""
    known = _described(store)
    if known is not None:
        return known
    files = store.files()
    found = [(name, form.index(store)) for name, form in formats.items() if form.matches(files)]
    if not found:
        seen = ", ".join(list(files)[:5]) or "none"
        count = f" ({min(5, len(files))} of {len(files)})" if files else ""
        raise FormatError(
            f"{store.uri}: no checkpoint that can be read; files{count}: {seen}; "
            f"formats tried: {', '.join(formats)}"
        )
    return _merge(found)


def _described(store: Store) -> Index | None:
    """Index of a store that knows its tensors itself, as a model in memory does."""
    from analysis360.storage.memory import MemoryStore

    if not isinstance(store, MemoryStore):
        return None
    return Index(store.tensors, store.adam, store.step, store.skipped)


def _merge(found: list[tuple[str, Index]]) -> Index:
    tensors: dict[tuple[str, str], TensorInfo] = {}
    origin: dict[tuple[str, str], str] = {}
    skipped: list[tuple[str, str]] = []
    adam, step = None, None
    for name, index in found:
        skipped += index.skipped
        adam = index.adam if adam is None else adam.filled(index.adam)
        step = index.step if step is None else step
        for tensor in index.tensors:
            place = tensor.name, tensor.state
            if place in tensors:
                skipped.append((tensor.key, f"also in {origin[place]}, which is used"))
            else:
                tensors[place], origin[place] = tensor, name
    kept = tuple(t for t in tensors.values() if _fits(t, tensors, skipped))
    if step is not None and not 0 <= step < _MOST_STEPS:
        skipped.append(("step", "the number that the files give is none of steps"))
        step = None
    probes = tuple(probe for _, index in found for probe in index.probes)
    heads = next((index.heads for _, index in found if index.heads is not None), None)
    return Index(kept, adam, step, tuple(skipped), probes, heads)


def _fits(
    tensor: TensorInfo,
    tensors: Mapping[tuple[str, str], TensorInfo],
    skipped: list[tuple[str, str]],
) -> bool:
    """Whether an optimizer state has the shape of its weight, where that weight is there.

    A step is one real number.
    """
    if tensor.state == "step" and (tensor.numel != 1 or tensor.dtype.startswith("complex")):
        why = f"shape {list(tensor.shape)} of {tensor.dtype} is no step"
        skipped.append((tensor.key, why))
        return False
    weight = tensors.get((tensor.name, "weight"))
    if weight is None or tensor.state == "step" or tensor.shape == weight.shape:
        return True
    why = f"shape {list(tensor.shape)}, but its weight has {list(weight.shape)}"
    skipped.append((tensor.key, why))
    return False
