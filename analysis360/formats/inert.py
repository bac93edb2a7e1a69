"""What an unpickled file consists of: plain data, and inert stand-ins for everything else.

A few callables are read by their meaning, in data only: ordered dictionaries, sizes, numpy scalars
and torch's tensors. Nothing is imported and nothing is called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

__all__ = [
    "Global",
    "Record",
    "Refused",
    "Storage",
    "StoredTensor",
    "is_size",
    "kind",
    "meaning",
    "plain_key",
    "short",
]

_KEY_NODES = 64  # elements in a dictionary key: hashing nested tuples is recursive in C
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}  # fmt: skip
_NUMPY = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "u8": "Q", "b1": "?"}


@dataclass(frozen=True)
class Global:
    """A name that the pickle refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """What calling `made_by` would have made; never called.

    Attributes
    ----------
    made_by : object
        Usually a `Global`.
    args : tuple
    state : object
        What would have been given to ``__setstate__``.
    items, entries : list
        What would have been appended, and set as ``(key, value)``.
    """

    made_by: Any
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list, repr=False)
    entries: list[tuple[Any, Any]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        """Without arguments: what they hold may be deep, or shared so often that it never ends."""
        return f"a {kind(self)}"


@dataclass(frozen=True)
class Storage:
    """A reference to stored bytes: `numel` elements of `dtype` under `key`."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; `offset` and `stride` in elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        width = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != width:
                return 0 in self.shape
            width *= size
        return True


class Refused(Exception):
    """The pickle asks for something that is not done here."""


def is_size(value: object) -> TypeGuard[int]:
    """Whether this is a count of bytes or elements that 64 bits can hold."""
    return type(value) is int and 0 <= value < 2**63


def kind(value: Any) -> str:
    """Say what a value is."""
    made_by = value.made_by if isinstance(value, Record) else None
    return str(made_by) if isinstance(made_by, Global) else type(value).__name__


def short(value: Any, most: int = 60) -> str:
    """Show a value in an error, never more than one level of it."""
    if isinstance(value, (list, tuple)):
        inner = ", ".join(short(v, most) for v in value[:9] if not isinstance(v, (list, tuple)))
        text = f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if len(value) > 9 or any(isinstance(v, (list, tuple)) for v in value[:9]):
            text = f"a {kind(value)} of {len(value)}"
    elif isinstance(value, (str, bytes)):
        text = repr(value[: most + 1])
    elif isinstance(value, (int, float, type(None), Global)):
        text = str(value)
    else:
        text = f"a {kind(value)}"
    return text if len(text) <= most else text[: most - 3] + "..."


def plain_key(key: Any) -> Any:
    """Check that a key is plain, or a small tuple of plain keys."""
    todo, seen = [key], 0
    while todo:
        one = todo.pop()
        seen += 1
        if seen > _KEY_NODES:
            raise Refused("a dictionary key of too many parts")
        if isinstance(one, tuple):
            todo += one[: _KEY_NODES + 1]
        elif not isinstance(one, (str, int, float, bytes, bool, type(None), Global, Record)):
            raise Refused(f"a dictionary key of type {type(one).__name__}")
    return key


def meaning(made_by: Any, args: tuple[Any, ...]) -> Any:
    """Read the few calls whose meaning is data; all others stay records."""
    reader = _MEANINGS.get(str(made_by)) if isinstance(made_by, Global) else None
    found = reader(args) if reader is not None else None
    return Record(made_by, args) if found is None else found


def _tensor(args: tuple[Any, ...]) -> StoredTensor | None:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        return None
    dtype = storage.dtype
    if len(args) >= 7 and isinstance(args[6], Global) and args[6].module == "torch":
        dtype = args[6].name  # _rebuild_tensor_v3: an untyped storage read as this type
    lists = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
    if not lists or len(shape) > 64 or not all(map(is_size, (offset, *shape, *stride))):
        raise Refused("a tensor with an impossible shape")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _parameter(args: tuple[Any, ...]) -> StoredTensor | None:
    return args[0] if args and isinstance(args[0], StoredTensor) else None


def _subclass(args: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: what the function would make."""
    known = len(args) >= 3 and isinstance(args[2], tuple) and str(args[0]) in _TENSORS
    return meaning(args[0], args[2]) if known else None


def _dictionary(args: tuple[Any, ...]) -> dict[Any, Any] | None:
    if not args or not isinstance(args[-1], (list, dict)):
        return {}
    if isinstance(args[-1], dict):
        return dict(args[-1])
    return {plain_key(pair[0]): pair[1] for pair in args[-1]}


def _scalar(args: tuple[Any, ...]) -> Any:
    """Numpy scalars: ``scalar(dtype('f8', …), bytes)``."""
    if len(args) != 2 or not isinstance(args[0], Record) or not isinstance(args[1], bytes):
        return None
    kind = _NUMPY.get(args[0].args[0]) if args[0].args and type(args[0].args[0]) is str else None
    if kind is None or len(args[1]) != struct.calcsize(kind):
        return None
    return struct.unpack(f"<{kind}", args[1])[0]


def _encoded(args: tuple[Any, ...]) -> bytes | None:
    """Bytes as protocol 2 writes them: text to be encoded."""
    if len(args) == 2 and args[1] == "latin1" and isinstance(args[0], str):
        return args[0].encode("latin1")
    return None


def _sequence(args: tuple[Any, ...]) -> Any:
    if not args:
        return []
    return list(args[0]) if isinstance(args[0], (list, tuple)) else None


_TENSORS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_MEANINGS: dict[str, Callable[[tuple[Any, ...]], Any]] = _TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": lambda args: {},
    "torch.Size": lambda args: args[0] if args and isinstance(args[0], tuple) else None,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encoded,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "__builtin__.set": _sequence,
    "builtins.list": _sequence,
    "builtins.bytes": lambda args: None if args else b"",
    "__builtin__.bytes": lambda args: None if args else b"",
}
