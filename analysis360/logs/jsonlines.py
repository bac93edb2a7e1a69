"""One JSON record a line, as many trainers write them, or a JSON list of records."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import LogFormat, Source, as_frame, cell

__all__ = ["FORMAT", "records_frame"]


def sniff(source: Source) -> bool:
    """Text that begins as a JSON record or list does."""
    return source.text.lstrip()[:1] in ("{", "[") and not _console(source.first_line)


def _console(line: str) -> bool:
    """A console's line may begin with a bracket: ``[rank0]:[titan] …``, ``[2024-01-01 …] [INFO]``.

    That of a JSON list begins with ``[`` alone, or a record, or another JSON value.
    """
    return line.startswith("[") and line[1:].lstrip()[:1] not in ("", "{", "[", "]", '"')


def read(source: Source) -> pd.DataFrame:
    """Read the records; a last line without end that is no JSON was cut off and is left out."""
    try:
        whole = json.loads(source.text)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        return records_frame(dict(enumerate(whole)), "entry", source)
    records: dict[int, Any] = {}
    lines = source.text.splitlines()
    truncated = 0
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records[number] = json.loads(line)
        except ValueError as problem:
            if number < len(lines) or not source.cut_short or not records:
                raise LogError(f"{source.path}: line {number} is not JSON: {problem}") from problem
            truncated = 1
    return records_frame(records, "line", source, truncated=truncated)


def records_frame(
    records: dict[int, Any], unit: str, source: Source, *, truncated: int = 0
) -> pd.DataFrame:
    """Cells of records; what is no record is an error that names it."""
    for number, record in records.items():
        if not isinstance(record, dict):
            raise LogError(f"{source.path}: {unit} {number} is {record!r}, not names and values")
    rows = {n: {k: cell(v) for k, v in record.items()} for n, record in records.items()}
    return as_frame(rows, unit, truncated=truncated)


FORMAT = LogFormat("jsonlines", "JSON, one record a line, or a list of records", sniff, read)
