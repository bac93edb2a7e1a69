"""What the consoles of trainers have in common: thousands, copies by several processes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from analysis360.logs.source import Source, as_frame

__all__ = ["NUMBER", "Rows", "lines", "number"]

NUMBER = re.compile(
    r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|nan|inf(?:inity)?)(?!\w*=)",
    re.IGNORECASE,
)


def lines(source: Source) -> Iterator[tuple[int, str, bool]]:
    r"""Number, text and wholeness of each line, without what ``\r`` wrote over.

    The last line is not whole where the file ends within it.
    """
    found = source.text.split("\n")
    for at, line in enumerate(found, 1):
        plain = line.rstrip("\r").rsplit("\r", 1)[-1]
        if plain.strip():
            yield at, plain, at < len(found)


def number(text: str) -> str:
    """The number that a text begins with, without separators of thousands; "" if none.

    Examples
    --------
    >>> [number(text) for text in ("5,103,640", "49.66GiB(52.28%)", "2.38E+00", "NaN", "off")]
    ['5103640', '49.66', '2.38E+00', 'nan', '']
    """
    match = NUMBER.match(text.strip())
    return match.group().replace(",", "").lower().replace("e+", "E+") if match else ""


class Rows:
    """Rows of a console's log, by line.

    A row that repeats the step and the loss of the row before it is the copy of another process
    and is skipped. What is said of a step without a loss, as of an evaluation, goes to the row of
    that step if it is the last one, else it is skipped.
    """

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, str]] = {}
        self._last: dict[str, str] = {}
        self.skipped = 0
        self.truncated = 0

    def add(self, line: int, step: str, values: dict[str, str], loss: str) -> None:
        """Take a row; `loss` is the name of its loss."""
        last = self._last
        if last and last["step"] == step and last.get(loss) == values.get(loss):
            self.skipped += 1
            return
        self._last = self._rows[line] = {"step": step, **values}

    def also(self, step: str, values: dict[str, str]) -> None:
        """Take what is said of the last row's step besides; what it said already stays."""
        if self._last and self._last["step"] == step:
            for name, value in values.items():
                self._last.setdefault(name, value)
        else:
            self.skipped += 1

    def frame(self) -> pd.DataFrame:
        """Cells as written."""
        return as_frame(self._rows, skipped=self.skipped, truncated=self.truncated)
