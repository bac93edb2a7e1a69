"""CSV files that the Weights & Biases page exports from a chart.

Columns are ``Step``, ``<run> - <metric>`` and, for each of these, ``…__MIN`` and ``…__MAX``;
several runs stand side by side.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.columns import SYNONYMS, plain_name
from analysis360.logs.delimited import header
from analysis360.logs.delimited import read as read_cells
from analysis360.logs.source import LogFormat, Source

__all__ = ["FORMAT"]

_COLUMN = re.compile(r"^(?P<run>.*) - (?P<metric>.+?)(?P<edge>__MIN|__MAX)?$")


def sniff(source: Source) -> bool:
    """A first column that is a step and, behind it, nothing but ``<run> - <metric>``."""
    first, *others = header(source) or [""]
    step = plain_name(first) in SYNONYMS["step"]
    return step and bool(others) and all(_COLUMN.match(name) for name in others)


def read(source: Source) -> pd.DataFrame:
    """Read the runs one below the other, as branches if they are several.

    A chart of many points is exported as means over bins. Rows whose ``__MIN`` is not
    their ``__MAX`` are such: the column `binned` says so, and a short spike in them is flattened.
    """
    cells = read_cells(source)
    step, *names = cells.columns
    runs: dict[str, dict[str, str]] = {}
    edges: dict[str, dict[str, list[str]]] = {}
    for name in names:
        found = _COLUMN.match(name)
        if found is None:
            raise LogError(f"{source.path}: column {name!r} is not '<run> - <metric>'")
        run, metric, edge = found.groups()
        if edge:
            edges.setdefault(run, {}).setdefault(metric, []).append(name)
        else:
            runs.setdefault(run, {})[name] = metric
    parts = []
    for run, metrics in runs.items():
        # the page's "Step" counts calls; where the run logged a step of its own, that is the step
        metrics = {name: metric for name, metric in metrics.items() if metric != "_step"}
        own = any(plain_name(metric) in SYNONYMS["step"] for metric in metrics.values())
        first = pd.DataFrame({"_step" if own else "step": cells[step]})
        part = first.join(cells[list(metrics)].rename(columns=metrics))
        pairs = [pair for pair in edges.get(run, {}).values() if len(pair) == 2]
        binned = pd.Series(False, index=cells.index)
        for low, high in pairs:
            binned |= cells[low] != cells[high]
        part["binned"] = binned.map({True: "1", False: "0"})
        if len(runs) > 1:
            part["branch"] = run
        parts.append(part[(cells[list(metrics)] != "").any(axis=1)])
    frame = pd.concat(parts).fillna("")
    frame.attrs = cells.attrs | {"sparse": True}
    return frame


FORMAT = LogFormat(
    "wandb_export", "CSV that the Weights & Biases page exports from a chart", sniff, read
)
