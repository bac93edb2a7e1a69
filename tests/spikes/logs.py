"""Logs to detect in: made ones, and the published ones beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis360.logs import read_loss

LOGS = Path(__file__).parents[2] / "../shared/logs"
real = pytest.mark.skipif(not LOGS.is_dir(), reason="the published logs are not beside the project")


def falling(n: int = 600, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Make a loss as real ones are: a slow fall in log step, and noise."""
    rng = np.random.default_rng(seed)
    return 4.0 - 0.2 * np.log1p(np.arange(n)) + noise * rng.standard_normal(n)


def frame(
    values: Any, branch: str = "a", parent: str | None = None, start: int = 0
) -> pd.DataFrame:
    steps = start + np.arange(len(values))
    return pd.DataFrame(
        {"branch": branch, "parent": parent, "step": steps, "tokens": steps * 1000, "loss": values}
    ).astype({"step": "Int64", "tokens": "Int64", "parent": "str"})


def pair() -> tuple[pd.DataFrame, pd.DataFrame]:
    spiky = read_loss(LOGS / "wmt_transformer_spiky/measurements.csv", branch="spiky")
    return spiky, read_loss(LOGS / "wmt_transformer_normal/measurements.csv", branch="normal")


def gpt2() -> pd.DataFrame:
    return read_loss(LOGS / "gpt2_124m/main.log")


def bloom() -> pd.DataFrame:
    """Iterations quoted around the first spike of the 176B run."""
    rows = pd.read_csv(LOGS / "bloom/bloom_iterations.csv")
    rows = rows[(rows["run"] == "tr11-176B-ml") & rows["iteration"].between(31214, 31251)]
    names = {"iteration": "step", "consumed_tokens": "tokens", "lm_loss": "loss"}
    return read_loss(rows.rename(columns=names)[[*names.values(), "grad_norm"]], branch="bloom")


def counts() -> Any:
    return json.loads((LOGS / "reference_counts.json").read_text())
