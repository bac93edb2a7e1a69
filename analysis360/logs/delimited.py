"""Tables of comma- or tab-separated values with a line of names."""

from __future__ import annotations

import csv
import io

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT", "header", "read"]


def separator(source: Source) -> str:
    """A tab where the file is called so or its first line has one and no comma."""
    line = source.first_line
    return "\t" if source.path.suffix == ".tsv" or ("\t" in line and "," not in line) else ","


def header(source: Source) -> list[str]:
    """Names in the first line, taken as a table's."""
    try:
        cells = next(csv.reader([source.first_line], delimiter=separator(source)), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def sniff(source: Source) -> bool:
    """Two names or more in the first line, none of them a number or a sentence."""
    names = header(source)
    return len(names) > 1 and all(_is_name(name) for name in names)


def _is_name(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return len(text) < 200 and "\ufffd" not in text
    return False


def _is_short(line: str, source: Source) -> bool:
    try:
        cells = next(csv.reader([line], delimiter=separator(source), strict=True))
    except csv.Error:  # within quotes
        return True
    return len(cells) < len(header(source))


def read(source: Source) -> pd.DataFrame:
    """Read the cells; a last line without end that lacks cells was cut off and is left out."""
    text, truncated, between = source.text, 0, separator(source)
    lines = text.splitlines()
    if source.cut_short and len(lines) > 1 and _is_short(lines[-1], source):
        text, truncated = text[: len(text) - len(lines[-1])], 1
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=between, dtype="str", keep_default_na=False,
            skip_blank_lines=False, skipinitialspace=True,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as problem:
        message = f"{source.path}: not a table of comma-separated values: {problem}"
        raise LogError(message) from problem
    frame.index = pd.RangeIndex(2, 2 + len(frame), name="line")
    frame = frame[(frame.fillna("") != "").any(axis=1)]
    frame.attrs = {"skipped": 0, "truncated": truncated}
    return frame


FORMAT = LogFormat("delimited", "CSV or TSV with a line of names", sniff, read)
