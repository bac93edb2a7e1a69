"""torchtitan's console: ``step: 200  loss:  6.1384  grad_norm:  0.83  memory: … tps: 5,856 …``.

A line ``validate step: 200  loss: 6.2`` becomes `val_loss` of that step's row.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis360.logs.console import Rows, lines, number
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

_LINE = re.compile(r"\b(validate )?step:\s*([\d,]+)\s+(loss:.*)")
_PAIR = re.compile(r"([A-Za-z_][\w/]*):\s*(\S+)")


def sniff(source: Source) -> bool:
    """Any line ``step: <n>  loss: <x>``."""
    return _LINE.search(source.text) is not None


def read(source: Source) -> pd.DataFrame:
    """Read the steps; the copies that other processes print are skipped."""
    rows, width = Rows(), 0
    for at, line, whole in lines(source):
        found = _LINE.search(line)
        if found is None:
            continue
        step = found.group(2).replace(",", "")
        pairs = {name: number(value) for name, value in _PAIR.findall(found.group(3))}
        values = {name: value for name, value in pairs.items() if value}
        if found.group(1):
            rows.also(step, {f"val_{name}": value for name, value in values.items()})
        elif not whole and len(values) < width:
            rows.truncated = 1
        else:
            width = len(values)
            rows.add(at, step, values, "loss")
    return rows.frame()


FORMAT = LogFormat("torchtitan", "text that torchtitan prints", sniff, read)
