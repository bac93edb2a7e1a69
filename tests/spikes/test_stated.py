"""Events over a stated baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import LogError
from analysis360.spikes import find_spikes
from tests.spikes.logs import falling, frame


def spiked(n: int = 600) -> np.ndarray:
    values = falling(n)
    values[300:320] += 2
    return values


def test_baselines_by_number_fit_and_branch() -> None:
    log = pd.concat([frame(spiked(), "s"), frame(falling(seed=5), "n")])
    at = {}
    for baseline in ("fit", "n"):
        found = find_spikes(log[log["branch"] != baseline] if baseline == "fit" else log,
                            baseline=baseline)  # fmt: skip
        found = found[(found["branch"] == "s") & (found["channel"] == "sustained")]
        assert found["onset"].tolist() == [300] and found["end"].tolist() == [320]
        assert found["height"].item() == pytest.approx(2, abs=0.15)
        assert found["status"].item() == f"stated baseline {baseline}"
        at[baseline] = found["residual"].item()
    assert abs(at["n"]) < 0.02
    short = find_spikes(frame(np.array([3.0, 3.1, 6.0, 5.0, 4.0, 3.05, 3.0])), baseline=3.0)
    assert short[["onset", "peak", "end", "points"]].iloc[0].tolist() == [2, 2, 5, 3]
    assert "too short to detect in: 7 samples" in short["status"].item()
    assert short["residual"].item() == pytest.approx(0.025)


def test_baseline_that_is_none() -> None:
    for baseline in ("x", float("nan")):
        with pytest.raises(LogError, match="allowed are"):
            find_spikes(frame(falling()), baseline=baseline)
    assert find_spikes(frame([3.0]), baseline="fit").empty


def test_another_branch_is_a_baseline_only_where_it_was_sampled() -> None:
    log = pd.concat([frame(spiked(), "s"), frame(falling(250, seed=5), "n")])
    found = find_spikes(log, baseline="n")
    assert found[found["onset"] >= 250].empty
