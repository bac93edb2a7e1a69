"""Checked look-ups in what was unpickled: a wrong type is an error that names file and key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from analysis360.core import DTYPE_BYTES
from analysis360.errors import FormatError
from analysis360.formats.base import HeaderReader
from analysis360.formats.inert import Record, StoredTensor, kind, short
from analysis360.formats.torch_file import TorchFile

__all__ = ["Fields", "kind", "plain_number", "read_number", "size_of"]

_LIMIT = 2**63


class Fields:
    """A dictionary of a file, with the path of keys that leads to it.

    Parameters
    ----------
    data : object
        What should be a dictionary.
    where : str
        Store and file, for error messages.
    key : str
        Path of keys that leads to it; empty for the root.

    Raises
    ------
    FormatError
        If it is something else.
    """

    def __init__(self, data: Any, where: str, key: str = "") -> None:
        self.where, self.key = where, key
        if not isinstance(data, dict):
            raise FormatError(
                f"{where}: {key or 'what was saved'} is {kind(data)}, not a dictionary"
            )
        self.data: dict[Any, Any] = data

    def path(self, key: object) -> str:
        """Full path of a key."""
        return f"{self.key}.{key}" if self.key else str(key)

    def bad(self, key: object, what: str) -> FormatError:
        """Make an error that names file and key."""
        return FormatError(f"{self.where}: {self.path(key)} {what}")

    def get(self, key: object) -> Any:
        """Give a value; None if there is none."""
        return self.data.get(key)

    def fields(self, key: object) -> Fields:
        """Give a dictionary."""
        return Fields(self._there(key), self.where, self.path(key))

    def optional(self, key: object) -> Fields:
        """Give a dictionary; an empty one if there is none."""
        found = self.data.get(key)
        return Fields({} if found is None else found, self.where, self.path(key))

    def sequence(self, key: object) -> list[Any]:
        """Give a list or tuple."""
        found = self._there(key)
        if not isinstance(found, (list, tuple)):
            raise self.bad(key, f"is {kind(found)}, not a list")
        return list(found)

    def each(self, key: object) -> Iterator[Fields]:
        """Give the dictionaries of a list."""
        for i, found in enumerate(self.sequence(key)):
            yield Fields(found, self.where, f"{self.path(key)}[{i}]")

    def count(self, key: object, default: int | None = None) -> int:
        """Give a whole number from 0; an enumeration's member counts as its value."""
        found = self.data.get(key)
        if found is None and default is not None:
            return default
        return self._count(key, found)

    def counts(self, key: object) -> list[int]:
        """Give a list of whole numbers."""
        return [self._count(f"{key}[{i}]", v) for i, v in enumerate(self.sequence(key))]

    def flat(self, key: object) -> StoredTensor:
        """Give a one-dimensional dense tensor of numbers, as flat buffers are stored."""
        return self._flat(key, self._there(key))

    def flats(self, key: object) -> list[StoredTensor]:
        """Give a list of such tensors."""
        return [self._flat(f"{key}[{i}]", v) for i, v in enumerate(self.sequence(key))]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Read it as a mapping of name to shape."""
        found: dict[str, tuple[int, ...]] = {}
        for name, value in self.data.items():
            value = [value] if type(value) is int else value
            sides = value if isinstance(value, (list, tuple)) else None
            if not isinstance(name, str) or sides is None or not all(map(_is_count, sides)):
                raise self.bad(name, f"is {short(value)}, not a shape")
            found[name] = tuple(sides)
        return found

    def tensors(self) -> dict[str, StoredTensor]:
        """Give those of its values that are tensors with a name."""
        return {
            name: value for name, value in self.data.items()
            if isinstance(name, str) and isinstance(value, StoredTensor)
        }  # fmt: skip

    def _there(self, key: object) -> Any:
        found = self.data.get(key)
        if found is None:
            known = ", ".join(map(str, list(self.data)[:8])) or "nothing"
            raise self.bad(key, f"is missing; there are {known}")
        return found

    def _count(self, key: object, found: Any) -> int:
        if isinstance(found, Record) and len(found.args) == 1:
            found = found.args[0]
        if not _is_count(found):
            raise self.bad(key, f"is {short(found)}, not a whole number")
        return int(found)

    def _flat(self, key: object, found: Any) -> StoredTensor:
        if not isinstance(found, StoredTensor):
            raise self.bad(key, f"is {kind(found)}, not a tensor")
        if len(found.shape) != 1 or not found.contiguous or found.dtype not in DTYPE_BYTES:
            raise self.bad(key, f"is {found.dtype} of shape {list(found.shape)}, not a flat buffer")
        return found


def plain_number(value: Any) -> float | None:
    """Give a finite number from 0, None for all else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53:
        return float(value) if math.isfinite(value) else None
    return None


def read_number(reader: HeaderReader, file: TorchFile, value: Any, key: str) -> float | None:
    """Give a number from 0 that is stored as such, or as a tensor of one element."""
    import numpy as np

    if not isinstance(value, StoredTensor):
        return plain_number(value)
    if value.dtype not in ("float32", "float64", "int64", "int32") or math.prod(value.shape) != 1:
        return None
    part = file.part(value, key)
    if part is None:
        return None
    raw = reader.read(part.file, part.offset, part.nbytes)
    return plain_number(np.frombuffer(raw, part.dtype)[0].item())


def size_of(shape: tuple[int, ...]) -> int:
    """Give the number of elements."""
    return math.prod(shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT
