"""What DeepSpeed's pipeline engine prints: ``steps: 10 loss: 2.34 iter time (s): 0.1 …``.

Its line ``[Rank 0] step=10, skipped=0, lr=[1e-4], …`` before that gives the learning rate of the
first group. Without the pipeline engine DeepSpeed prints no loss.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.console import Rows, lines, number
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

_LINE = re.compile(
    r"\bsteps:\s*(\d+)\s+loss:\s*(\S+)"
    r"(?:\s+iter time \(s\):\s*(\S+))?(?:\s+samples/sec:\s*(\S+))?"
)
_RATE = re.compile(r"\bstep=(\d+), skipped=(\d+), lr=\[([^\],]+)")


def sniff(source: Source) -> bool:
    """Any line of the pipeline engine's, or of the one with the learning rate."""
    return re.search(r"\bsteps:\s*\d+\s+loss:", source.text) is not None or (
        _RATE.search(source.text) is not None
    )


def read(source: Source) -> pd.DataFrame:
    """Read the steps."""
    rows, rates = Rows(), {}
    for at, line, whole in lines(source):
        if rate := _RATE.search(line):
            rates = {rate.group(1): {"skipped": rate.group(2), "lr": number(rate.group(3))}}
        elif found := _LINE.search(line):
            step, *said = found.groups()
            if not whole and None in said:
                rows.truncated = 1
                continue
            names = ("loss", "iteration time (s)", "samples/sec")
            values = {n: number(value) for n, value in zip(names, said) if value is not None}
            rows.add(at, step, values | rates.get(step, {}), "loss")
    frame = rows.frame()
    if frame.empty:
        raise LogError(
            f"{source.path}: what DeepSpeed printed here tells no loss (only its pipeline engine "
            "does, 'steps: 10 loss: 2.34 …'); read the log of the trainer that uses it"
        )
    return frame


FORMAT = LogFormat("deepspeed", "text that DeepSpeed's pipeline engine prints", sniff, read)
