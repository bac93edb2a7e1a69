"""Read a pickle without importing or running anything that it names.

A small machine for the opcodes of protocols 0 to 5. A global becomes an inert `Global`; calling
one, building on it or making an object of it becomes an inert `Record`, or what it means where
that is plain data. A tensor becomes a `StoredTensor`: a view of a `Storage`,
whose bytes are not touched.

Source of the opcodes: ``pickletools`` of the Python standard library.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from analysis360.errors import FormatError
from analysis360.formats.inert import (
    STORAGES,
    Global,
    Record,
    Refused,
    Storage,
    StoredTensor,
    is_size,
    meaning,
    plain_key,
)

__all__ = ["CutShort", "storages_in", "unpickle", "unpickle_many"]

_MARK = object()
_SPARE = 1000  # elements that may be copied above the bytes of the data
_LONG_BYTES = 1000  # of an integer: Python refuses to write out those of more than 4300 digits
_ESCAPED = re.compile(r"(?:[^\\]|\\[\\'\"abfnrtv]|\\[0-3]?[0-7]{1,2}|\\x[0-9a-fA-F]{2})*")


def unpickle(data: bytes, where: str) -> Any:
    """Read one pickle into plain containers, numbers, text and inert stand-ins.

    Parameters
    ----------
    data : bytes
        The pickle; its length bounds the memory and the time that it can take.
    where : str
        File and record, for error messages.

    Returns
    -------
    object
        Sets become lists; functions and classes are `Global`, their results `Record`.

    Raises
    ------
    FormatError
        If it is not a pickle, is cut short, or refers to things outside itself.

    Examples
    --------
    >>> import os, pickle
    >>> class Hostile:
    ...     def __reduce__(self):
    ...         return os.system, ("echo harm",)
    >>> unpickle(pickle.dumps({"a": [1, 2.5], "b": Hostile()}, protocol=2), "example")["b"].args
    ('echo harm',)
    """
    found, _ = unpickle_many(data, 1, where)
    return found[0]


class CutShort(FormatError):
    """The data end before the pickle does."""


def unpickle_many(data: bytes, count: int, where: str) -> tuple[list[Any], int]:
    """Read some pickles that follow each other.

    Parameters
    ----------
    data : bytes
    count : int
        How many there are.
    where : str

    Returns
    -------
    list of object
    int
        Byte at which the last one ends.

    Raises
    ------
    CutShort
        If the data end before.
    FormatError
        As `unpickle`.
    """
    machine = _Machine(data)
    try:
        return [machine.next() for _ in range(count)], machine.at
    except _Ended as error:
        raise CutShort(f"{where}: pickle at byte {machine.at}: {error}") from None
    except Refused as error:
        raise FormatError(f"{where}: pickle at byte {machine.at}: {error}") from None
    except (IndexError, ValueError, TypeError, KeyError, struct.error, OverflowError) as error:
        raise FormatError(
            f"{where}: not a valid pickle, at byte {machine.at}: {type(error).__name__} {error}"
        ) from None


def storages_in(root: Any) -> list[Storage]:
    """Every storage that tensors in plain containers and records refer to."""
    found: list[Storage] = []
    todo, seen = [root], set[int]()
    while todo:
        one = todo.pop()
        if isinstance(one, Storage):
            found.append(one)
        elif isinstance(one, StoredTensor):
            found.append(one.storage)
        elif isinstance(one, (dict, list, tuple, Record)) and id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, dict):
                todo += [*one.keys(), *one.values()]
            elif isinstance(one, Record):
                todo += [one.made_by, one.args, one.state, one.items, one.entries]
            else:
                todo += one
    return found


class _Ended(Refused):
    """The data end here."""


class _Machine:
    """The stack, the memo and the place in the data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def next(self) -> Any:
        """Read one pickle; the next begins where it ends."""
        self.stack, self.memo = [], {}
        data, size = self.data, len(self.data)
        while True:  # as little as can be: the metadata of large checkpoints have millions of steps
            if self.at >= size:
                raise _Ended("cut short")
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if len(self.stack) != 1:
                    raise Refused(f"{len(self.stack)} objects at its end instead of one")
                return self.pop()
            step = _OPCODES.get(code)
            if step is None:
                raise Refused(f"opcode {bytes([code])!r} is not read")
            step(self)

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise _Ended("cut short")
        found = self.data[self.at : self.at + count]
        self.at += count
        return found

    def byte(self) -> int:
        """One byte: most of what is taken, and a third faster than `take`."""
        if self.at >= len(self.data):
            raise _Ended("cut short")
        self.at += 1
        return self.data[self.at - 1]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, encoding: str = "utf-8") -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise _Ended("cut short")
        found = self.data[self.at : end].decode(encoding)
        self.at = end + 1
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Refused("a mark where a value is needed")
        return value

    def to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                found = self.stack[i + 1 :]
                del self.stack[i:]
                return found
        raise Refused("no mark on the stack")

    def call(self, made_by: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise Refused("arguments that are not a tuple")
        found = meaning(made_by, args)
        if args and isinstance(found, (list, dict, bytes)):
            self.copy(len(found))
        self.push(found)

    def copy(self, size: int) -> None:
        """Count what was copied: where each copy is of something of its own, less than is read."""
        self.copied += size
        if self.copied > len(self.data) + _SPARE:
            raise Refused("copies of one object over and over")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("a global whose name is not text")
        self.push(Global(module, name))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if len(pairs) % 2:
            raise Refused("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, dict):
                target[plain_key(key)] = value
            elif isinstance(target, Record):
                target.entries.append((key, value))
            else:
                raise Refused(f"items of a {type(target).__name__}")

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items += values
        elif isinstance(target, list):
            target += values
        else:
            raise Refused(f"elements appended to a {type(target).__name__}")

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, (dict, list, StoredTensor, Global)):
            raise Refused(f"state of a {type(target).__name__}")

    def persistent(self) -> None:
        """Storage references: ``('storage', class, key, location, numel)``."""
        pid = self.pop()
        named = isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], Global)
        if not named or pid[0] != "storage" or not isinstance(pid[2], str) or not is_size(pid[4]):
            raise Refused("a reference outside the file that is not a torch storage")
        if len(pid) > 5 and pid[5] is not None:  # before torch 0.4: a view of another storage
            raise Refused("a storage that is a view of another one")
        dtype = STORAGES.get(pid[1].name)
        if dtype is None:
            raise Refused(f"storage of unknown type {pid[1]}")
        self.push(Storage(dtype, pid[2], pid[4]))


# The opcodes, by name. Each takes its arguments from the data and works on the stack.


def _reduce(m: _Machine) -> None:
    args = m.pop()
    m.call(m.pop(), args)


def _new_ex(m: _Machine) -> None:
    named, args = m.pop(), m.pop()
    made_by = m.pop()
    m.copy(len(args) if isinstance(args, tuple) and named else 0)
    m.call(made_by, (*args, named) if isinstance(args, tuple) and named else args)


def _inst(m: _Machine) -> None:
    module, name = m.line(), m.line()
    args = m.to_mark()
    m.call(Global(module, name), tuple(args))


def _obj(m: _Machine) -> None:
    found = m.to_mark()
    m.call(found[0], tuple(found[1:]))


def _stack_global(m: _Machine) -> None:
    name = m.pop()
    m.name(m.pop(), name)


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        found = [m.pop() for _ in range(count)]
        m.push(tuple(reversed(found)))

    return step


def _dict(m: _Machine) -> None:
    pairs = m.to_mark()
    m.push({})
    m.set_items(pairs)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _append(m: _Machine) -> None:
    value = m.pop()
    m.append([value])


def _put(m: _Machine, key: int) -> None:
    m.memo[key] = m.stack[-1]


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _get(m: _Machine) -> None:
    m.stack.append(m.memo[int.from_bytes(m.take(4), "little")])


def _frame(m: _Machine) -> None:
    m.number("<Q")


def _int(m: _Machine) -> None:
    text = m.line()
    m.push({"00": False, "01": True}.get(text) if text in ("00", "01") else int(text))


def _long(form: str) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        size = m.number(form)
        if size > _LONG_BYTES:
            raise Refused(f"an integer of {size} bytes")
        m.push(int.from_bytes(m.take(size), "little", signed=True))

    return step


def _quoted(m: _Machine) -> None:
    text = m.line("latin1")
    if not _ESCAPED.fullmatch(text):  # what Python itself warns of
        raise Refused("text with escapes that mean nothing")
    m.push(text.encode("latin1").decode("unicode_escape").strip("'\""))


def _text(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(form)).decode("utf-8", "surrogatepass"))


def _latin(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(form)).decode("latin1"))


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(form)))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.push(value)


_OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "(": lambda m: m.push(_MARK), "0": lambda m: m.stack.pop(), "1": lambda m: m.to_mark(),
        "2": lambda m: m.push(m.stack[-1]), "\x80": lambda m: m.take(1), "\x95": _frame,
        "N": _constant(None), "\x88": _constant(True), "\x89": _constant(False),
        "I": _int, "J": lambda m: m.push(m.number("<i")), "K": lambda m: m.push(m.byte()),
        "M": lambda m: m.push(m.number("<H")), "L": lambda m: m.push(int(m.line().rstrip("L"))),
        "\x8a": _long("<B"), "\x8b": _long("<i"),
        "F": lambda m: m.push(float(m.line())), "G": lambda m: m.push(m.number(">d")),
        "V": lambda m: m.push(m.line("raw_unicode_escape")),
        "S": _quoted,
        "X": _text("<I"), "\x8c": _text("<B"), "\x8d": _text("<Q"),
        "T": _latin("<i"), "U": _latin("<B"),
        "B": _bytes("<I"), "C": _bytes("<B"), "\x8e": _bytes("<Q"), "\x96": _bytes("<Q"),
        "]": lambda m: m.push([]), "}": lambda m: m.push({}), ")": _constant(()),
        "\x8f": lambda m: m.push([]), "l": lambda m: m.push(m.to_mark()), "d": _dict,
        "t": lambda m: m.push(tuple(m.to_mark())), "\x91": lambda m: m.push(tuple(m.to_mark())),
        "\x85": _tuple(1), "\x86": _tuple(2), "\x87": _tuple(3),
        "a": _append, "e": lambda m: m.append(m.to_mark()), "\x90": lambda m: m.append(m.to_mark()),
        "s": _set_item, "u": lambda m: m.set_items(m.to_mark()),
        "c": lambda m: m.name(m.line(), m.line()), "\x93": _stack_global,
        "R": _reduce, "\x81": _reduce, "\x92": _new_ex, "i": _inst, "o": _obj,
        "b": lambda m: m.build(), "Q": lambda m: m.persistent(),
        "p": lambda m: _put(m, int(m.line())), "q": lambda m: _put(m, m.byte()),
        "r": lambda m: _put(m, m.number("<I")), "\x94": _memoize,
        "g": lambda m: m.push(m.memo[int(m.line())]),
        "h": lambda m: m.push(m.memo[m.byte()]),
        "j": _get,
    }.items()
}  # fmt: skip
