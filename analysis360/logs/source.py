"""What a reader of a log is given, and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.errors import LogError

__all__ = ["LogFormat", "Source", "as_frame", "cell"]

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Source:
    """A file or folder that may be a log; it is read once, whoever asks.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()

    @cached_property
    def head(self) -> bytes:
        """The first 16 bytes; none of a folder."""
        if self.is_folder:
            return b""
        try:
            with self.path.open("rb") as file:
                return file.read(16)
        except OSError as problem:
            raise LogError(f"{self.path}: cannot be read as a log: {problem}") from problem

    @cached_property
    def text(self) -> str:
        r"""The whole text without a terminal's colours; "" of a folder and of what is no text.

        Bytes that are no UTF-8, as terminals and killed jobs leave them, become ``"\ufffd"``.
        """
        if self.is_folder:
            return ""
        try:
            data = self.path.read_bytes()
        except OSError as problem:
            raise LogError(f"{self.path}: cannot be read as a log: {problem}") from problem
        text = "" if b"\x00" in data else data.decode("utf-8-sig", errors="replace")
        return _COLOUR.sub("", text) if "\x1b" in text else text

    @cached_property
    def first_line(self) -> str:
        """The first line that is not blank."""
        return self.text.lstrip().split("\n", 1)[0].rstrip()

    @property
    def cut_short(self) -> bool:
        """Whether the text ends within a line, as where its writer was killed."""
        return not self.text.endswith("\n")


@dataclass(frozen=True)
class LogFormat:
    """One make of log.

    Attributes
    ----------
    name : str
    what : str
        What it is, for the list in an error message.
    sniff : callable
        Whether a `Source` is one of these; reads no more than it must and raises nothing but
        `LogError`.
    read : callable
        From a `Source` to cells as written, see `as_frame`.
    """

    name: str
    what: str
    sniff: Callable[[Source], bool]
    read: Callable[[Source], pd.DataFrame]


def as_frame(
    rows: Mapping[int, Mapping[str, Any]],
    unit: str = "line",
    *,
    skipped: int = 0,
    truncated: int = 0,
    sparse: bool = False,
) -> pd.DataFrame:
    """Cells as written, from the rows of a log in its order.

    Parameters
    ----------
    rows : mapping of int to mapping
        By line, entry or record; names to values. What a row lacks becomes ``""``.
    unit : str
        What the numbers of `rows` count.
    skipped, truncated : int
        How much was left out: of another kind, and cut off at the end of the file.
    sparse : bool
        Whether every value of a step was logged for itself, so that a row without a loss is a step
        at which none was logged.

    Returns
    -------
    DataFrame
        Of objects; the index's name is `unit`; ``.attrs`` holds the rest.

    Examples
    --------
    >>> as_frame({3: {"step": "1", "loss": "2.5"}, 4: {"step": "2"}}).loc[4].tolist()
    ['2', '']
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = {name: [row.get(name, "") for row in rows.values()] for name in columns}
    frame = pd.DataFrame(cells, index=pd.Index(list(rows), name=unit), dtype="object")
    frame.attrs = {"skipped": skipped, "truncated": truncated, "sparse": sparse}
    return frame


def cell(value: Any) -> Any:
    """A value of JSON as a cell: an explicit null is a NaN, a blank is not."""
    return "nan" if value is None or value != value else value
