"""A run on a Weights & Biases server: ``wandb://entity/project/run`` or the address of its page.

`Run.scan_history` gives every row that was logged; `Run.history` would give a sample of 500.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.source import as_frame
from analysis360.logs.wandb_offline import scalars

__all__ = ["fetch", "is_address", "read_address"]

_ADDRESS = re.compile(
    r"^(?:wandb://|https?://[^/]*wandb[^/]*/)([^/?#]+)/([^/?#]+)/(?:runs/)?([^/?#]+)"
)


def is_address(source: object) -> bool:
    """Whether this is the address of a run on a server.

    Examples
    --------
    >>> is_address("wandb://llm/k2/1abc"), is_address("https://wandb.ai/llm/k2/runs/1abc?nw=x")
    (True, True)
    >>> is_address("wandb/run.csv"), is_address("https://wandb.ai/llm/k2")
    (False, False)
    """
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def read_address(address: str) -> pd.DataFrame:
    """Read the whole history of a run into cells, one row an entry of its history.

    Raises
    ------
    LogError
        If the server can't be reached, refuses, has no such run, or the run logged nothing.
    """
    found = _ADDRESS.match(address)
    if found is None:
        raise LogError(f"{address}: expected wandb://entity/project/run")
    rows = [scalars(dict(row)) for row in fetch("/".join(found.groups()))]
    if not rows:
        raise LogError(f"{address}: the log is empty: the run logged no history")
    return as_frame(dict(enumerate(rows)), "row", sparse=True)


def fetch(run: str) -> Iterable[Mapping[str, Any]]:
    """Every row of the history of ``entity/project/run``; all that talks to the server."""
    try:
        import wandb
    except ImportError as missing:
        raise LogError(
            f"{run}: runs on a Weights & Biases server are read with an extra: "
            "pip install analysis360[wandb]"
        ) from missing
    try:
        # no keys: rows that lack one of them would be left out
        return list(wandb.Api().run(run).scan_history())
    except Exception as problem:  # wandb's own errors have no common base
        raise LogError(f"{run}: Weights & Biases gives no history: {problem}") from problem
