"""What Megatron-LM, Megatron-DeepSpeed and GPT-NeoX print each few iterations.

`` iteration 182/ 250000 | consumed samples: 186368 | … | lm loss: 2.382640E+00 | … |``, and of
evaluations `` validation loss at iteration 1000 | lm loss value: 2.4E+00 | …``, which becomes
`val_loss` of that iteration's row.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis360.logs.console import Rows, lines, number
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

_LINE = re.compile(r"\biteration\s+(\d+)\s*/\s*\d+\s*\|(.*)")
_VALID = re.compile(r"validation loss at iteration\s+(\d+)[^|]*\|.*?loss value:\s*([^|\s]+)")


def sniff(source: Source) -> bool:
    """Any line ``iteration <n>/ <of> |``."""
    return _LINE.search(source.text) is not None


def read(source: Source) -> pd.DataFrame:
    """Read the iterations; an iteration that was skipped has no loss, and is kept as NaN."""
    rows = Rows()
    for at, line, whole in lines(source):
        if valid := _VALID.search(line):
            rows.also(valid.group(1), {"val_loss": number(valid.group(2))})
        elif found := _LINE.search(line):
            if not whole and not line.rstrip().endswith("|"):
                rows.truncated = 1
                continue
            # GPT-NeoX has "samples/sec: 7.8 |" before the iteration
            values = _values(line[: found.start()]) | _values(found.group(2))
            rows.add(at, found.group(1), {"lm loss": "nan"} | values, "lm loss")
    return rows.frame()


def _values(text: str) -> dict[str, str]:
    said = {}
    for part in text.split("|"):
        name, colon, value = part.rpartition(":")
        if colon and (plain := number(value)):
            said[" ".join(name.replace("_", " ").split())] = plain  # GPT-NeoX: "lm_loss"
    return said


FORMAT = LogFormat(
    "megatron", "text that Megatron-LM, Megatron-DeepSpeed or GPT-NeoX prints", sniff, read
)
