"""llm.c's ``main.log``: ``s:250 trl:6.18 lr:0.0002 norm:0.9``, and ``s:250 tel:6.17`` of tests."""

from __future__ import annotations

import re

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import LogFormat, Source, as_frame

__all__ = ["FORMAT"]

_LINE = re.compile(r"^s:(\d+)((?:\s+\w+:\S+)+)\s*$")
_NAMES = {"trl": "loss", "norm": "grad_norm", "tel": "val_loss", "eval": "val_accuracy"}


def sniff(source: Source) -> bool:
    """The first line is one of llm.c's."""
    return _LINE.match(source.first_line) is not None


def read(source: Source) -> pd.DataFrame:
    """Read the lines; what a validation line says goes to the training row of its step."""
    rows: dict[int, dict[str, str]] = {}
    waiting: dict[str, str] = {}
    skipped = truncated = width = 0
    lines = source.text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.match(line)
        said = dict(pair.split(":", 1) for pair in match.group(2).split()) if match else {}
        # a line of fewer words than the last of its kind, and without an end, was cut off
        fewer = match is None or ("tel" not in said and "eval" not in said and len(said) < width)
        if number == len(lines) and source.cut_short and fewer and rows:
            truncated = 1
            break
        if match is None:
            raise LogError(
                f"{source.path}: line {number} is not 's:<step> trl:<loss> …' but {line!r}"
            )
        step = match.group(1)
        values = {_NAMES.get(name, name): value for name, value in said.items()}
        if waiting.get("step") != step:
            skipped += bool(waiting)
            waiting = {"step": step}
        if "loss" not in values:
            waiting |= values
            continue
        width = len(said)
        rows[number] = waiting | values
        waiting = {}
    skipped += bool(waiting)  # validation of a step that was not trained
    return as_frame(rows, skipped=skipped, truncated=truncated)


FORMAT = LogFormat("llmc", "llm.c's main.log", sniff, read)
