"""Events aligned at their onset, in logs and in measured tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import TableError
from analysis360.spikes import align_spikes, find_spikes
from tests.spikes.logs import falling, frame


def test_events_of_a_log() -> None:
    values = falling(900)
    values[300:320] += 2
    values[600:610] += 1
    log = frame(values)
    out = align_spikes(log, find_spikes(log), "loss", before=5000, after=10_000)
    assert out.groupby("event").size().to_dict() == {1: 16, 2: 16}
    assert out["onset"].unique().tolist() == [300, 600]
    first = out[out["event"] == 1]
    assert first["since_steps"].tolist() == list(range(-5, 11))
    assert (first["since_tokens"] == 1000 * first["since_steps"]).all()
    np.testing.assert_array_equal(first["before"], values[299])
    np.testing.assert_allclose(first["change"], values[295:311] - values[299])
    np.testing.assert_allclose(first["log2_ratio"], np.log2(values[295:311] / values[299]))
    steps = align_spikes(log, find_spikes(log), "loss", before=2, after=3, by="step")
    assert len(steps) == 12


def test_a_branch_has_its_parents_past() -> None:
    values = falling(400)
    log = pd.concat([frame(values[:300], "n"), frame(values[298:], "s", "n", 298)])
    spikes = pd.DataFrame({"branch": ["s"], "onset": [298], "onset_tokens": [298_000]})
    out = align_spikes(log, spikes, "loss", before=3000, after=1000)
    assert out["step"].tolist() == [295, 296, 297, 298, 299] and set(out["branch"]) == {"s"}
    assert (out["before"] == values[297]).all()


def table() -> pd.DataFrame:
    rows = [
        {"run": run, "branch": "a", "number": k, "step": 10 * k, "tokens": 100 * k, "name": name,
         "layer": layer, "module": "m", "param": "weight", "expert": pd.NA, "head": pd.NA,
         "state": "weight", "against": "", "norm": scale * (k + 1.0)}
        for run in ("r", "q") for k in range(6) for name, layer, scale in (("u", 0, 1.0), ("v", 1, -2.0))
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64", "tokens": "Int64", "step": "Int64"})


def test_events_of_a_measured_table() -> None:
    spikes = pd.DataFrame({"run": ["r"], "branch": ["a"], "onset": [25], "onset_tokens": [250]})
    out = align_spikes(table(), spikes, "norm", before=100, after=150)
    assert set(out["run"]) == {"r"} and len(out) == 6
    assert {"name", "layer", "module", "state", "against"} <= set(out.columns)
    u = out[out["name"] == "u"]
    assert u["since_tokens"].tolist() == [-50, 50, 150] and (u["before"] == 3.0).all()
    np.testing.assert_allclose(u["log2_ratio"], np.log2(np.array([3, 4, 5]) / 3))
    v = out[out["name"] == "v"]
    assert v["change"].tolist() == [0.0, -2.0, -4.0] and v["log2_ratio"].isna().all()
    with pytest.raises(TableError, match="must say which"):
        align_spikes(table(), spikes.drop(columns="run"), "norm", before=1, after=1)


def test_thin_input() -> None:
    log = frame(falling(50))
    spikes = pd.DataFrame({"branch": ["a", "z"], "onset": [0, 3]})
    out = align_spikes(log, spikes, "loss", before=2, after=2)
    assert out["step"].tolist() == [0, 1, 2] and out["before"].isna().all()
    empty = align_spikes(log, spikes.iloc[:0], "loss", before=2, after=2)
    assert empty.empty and list(empty) == list(out)
    with pytest.raises(TableError, match="columns .'x'. are missing"):
        align_spikes(log, spikes, "x", before=1, after=1)
    with pytest.raises(TableError, match="allowed are 'tokens' and 'step'; tokens are not known"):
        align_spikes(log, spikes, "loss", before=1, after=1, by="tokens")
