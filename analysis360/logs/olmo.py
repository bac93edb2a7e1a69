"""The console of OLMo and OLMo-core: ``[step=200/739328,epoch=0]``, then a line a metric.

The lines are indented: ``    train/CrossEntropyLoss=2.34``. What the console shows is rounded to
four digits or so; the same run's TensorBoard or Weights & Biases log is not.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis360.logs.columns import SYNONYMS, plain_name
from analysis360.logs.console import Rows, lines, number
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

_HEAD = re.compile(r"\[step=([\d,]+)/[^\]]*\]\s*$", re.MULTILINE)
_PAIR = re.compile(r"^\s+(\S[^=]*)=(\S+)\s*$")


def sniff(source: Source) -> bool:
    """Any line that ends in ``[step=<n>/<of>…]``."""
    return _HEAD.search(source.text) is not None


def read(source: Source) -> pd.DataFrame:
    """Read the steps; metrics of an evaluation go to the row of their step."""
    rows = Rows()
    step, at, values = "", 0, dict[str, str]()
    for number_, line, whole in lines(source):
        if found := _HEAD.search(line):
            _take(rows, at, step, values)
            step, at, values = found.group(1).replace(",", ""), number_, {}
        elif step and (pair := _PAIR.match(line)):
            if not whole:  # the value may be cut off
                rows.truncated = 1
            elif plain := number(pair.group(2)):
                values[pair.group(1)] = plain
        else:
            _take(rows, at, step, values)
            step, values = "", {}
    _take(rows, at, step, values)
    return rows.frame()


def _take(rows: Rows, at: int, step: str, values: dict[str, str]) -> None:
    if not step or not values:
        return
    loss = next((name for name in values if plain_name(name) in SYNONYMS["loss"]), None)
    if loss is None:
        rows.also(step, values)
    else:
        rows.add(at, step, values, loss)


FORMAT = LogFormat("olmo", "text that OLMo or OLMo-core prints", sniff, read)
