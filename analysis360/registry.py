"""One small registry: names to things, in order of registration."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 20
"""Names that an error message lists; more would bury the sentence."""


class Registry(Generic[T]):
    """Named plug-ins of one kind.

    Registering a name again replaces its entry, so that a notebook cell can be run twice.

    Parameters
    ----------
    kind : str
        What the entries are, for error messages, for example ``"statistic"``.
    error : type of Exception
        What ``registry[name]`` raises for an unknown name.

    Examples
    --------
    >>> colours = Registry("colour", KeyError)
    >>> colours.add("red", 1)
    >>> colours["red"], "blue" in colours, list(colours)
    (1, False, ['red'])
    """

    def __init__(self, kind: str, error: type[Exception] | Callable[[str], Exception]) -> None:
        self.kind = kind
        self._error = error
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register `entry` under `name`, in place of an older one of that name."""
        self._entries[name] = entry

    def remove(self, name: str) -> None:
        """Forget `name`; unknown names are an error."""
        self[name]
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise self._error(self._unknown(name)) from None

    def _unknown(self, name: str) -> str:
        lower = {entry.casefold(): entry for entry in self._entries}
        found = difflib.get_close_matches(str(name).casefold(), lower, n=3)
        near = [lower[match] for match in found]
        hint = f"known: {', '.join(self._entries)}"
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif len(self) > MOST:
            hint = f"none of the {len(self)} known is like it"
        return f"unknown {self.kind} {name!r}; {hint}"

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and entry, in order of registration."""
        return iter(self._entries.items())
