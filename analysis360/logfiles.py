"""Log files of several makes, taken apart into cells; what these mean is `analysis360.logs`'s."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis360.errors import LogError

__all__ = ["parse_log"]

_LLMC = re.compile(r"^s:(\d+)((?:\s+\w+:\S+)+)\s*$")
_LLMC_NAMES = {"trl": "loss", "norm": "grad_norm", "tel": "val_loss", "eval": "val_accuracy"}


def parse_log(path: Path) -> pd.DataFrame:
    """Read a log file into cells as written.

    Parameters
    ----------
    path : Path
        CSV, TSV, JSON lines, a JSON list of records, ``trainer_state.json`` or llm.c's main.log.
        Told apart by how it begins, not by its name (but for ``.tsv``).

    Returns
    -------
    DataFrame
        Index: the line, or the entry of a JSON list, as the index's name says. Blank is ``""``.
        ``.attrs["skipped"]`` counts what belongs to no row.

    Raises
    ------
    LogError
        If the file cannot be read, is empty or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise LogError(f"{path}: cannot be read as a log: {problem}") from problem
    start = text.lstrip()[:1]
    if not start:
        raise LogError(f"{path}: the log is empty")
    if start in "{[":
        return _parse_json(text, path)
    if _LLMC.match(text.lstrip().split("\n", 1)[0]):
        return _parse_llmc(text, path)
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, dtype="str", keep_default_na=False,
            skip_blank_lines=False, skipinitialspace=True,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as problem:
        raise LogError(f"{path}: not a table of comma-separated values: {problem}") from problem
    frame.index = pd.RangeIndex(2, 2 + len(frame), name="line")
    return frame[(frame != "").any(axis=1)]


def _parse_json(text: str, path: Path) -> pd.DataFrame:
    """Read a list of records, a trainer state, or one record per line."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and "log_history" in whole:
        whole = whole["log_history"]
    unit, records = "line", {}
    if isinstance(whole, list):
        unit, records = "entry", dict(enumerate(whole))
    else:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                if line.strip():
                    records[number] = json.loads(line)
            except ValueError as problem:
                raise LogError(f"{path}: line {number} is not JSON: {problem}") from problem
    for number, record in records.items():
        if not isinstance(record, dict):
            raise LogError(f"{path}: {unit} {number} is {record!r}, not names and values")
    columns = list(dict.fromkeys(name for record in records.values() for name in record))
    # a name that a record lacks is blank; an explicit null is a NaN
    cells = {c: [_cell(r.get(c, "")) for r in records.values()] for c in columns}
    return pd.DataFrame(cells, index=pd.Index(list(records), name=unit), dtype="object")


def _cell(value: Any) -> Any:
    return "nan" if value is None or value != value else value


def _parse_llmc(text: str, path: Path) -> pd.DataFrame:
    """Read llm.c's log; what a validation line says goes to the training row of its step."""
    rows: dict[int, dict[str, str]] = {}
    waiting: dict[str, str] = {}
    skipped = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LLMC.match(line)
        if match is None:
            raise LogError(f"{path}: line {number} is not 's:<step> trl:<loss> …' but {line!r}")
        step, said = match.group(1), dict(pair.split(":", 1) for pair in match.group(2).split())
        values = {_LLMC_NAMES.get(name, name): value for name, value in said.items()}
        if waiting.get("step") != step:
            skipped += bool(waiting)
            waiting = {"step": step}
        if "loss" not in values:
            waiting |= values
            continue
        rows[number] = waiting | values
        waiting = {}
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = {c: [row.get(c, "") for row in rows.values()] for c in columns}
    frame = pd.DataFrame(cells, index=pd.Index(list(rows), name="line"), dtype="object")
    frame.attrs["skipped"] = skipped + bool(waiting)  # validation of a step that was not trained
    return frame
