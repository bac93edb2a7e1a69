"""Change points: PELT against exact dynamic programming, CUSUM, and their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import LogError
from analysis360.spikes import find_changes
from analysis360.spikes.changes import pelt


def exact(value: np.ndarray, penalty: float, smallest: int) -> float:
    """Least cost by dynamic programming over all places, without pruning."""
    n = len(value)
    best = [-penalty] + [np.inf] * n
    for end in range(1, n + 1):
        for start in range(0, end - smallest + 1):
            part = value[start:end]
            cost = float(((part - part.mean()) ** 2).sum())
            best[end] = min(best[end], best[start] + cost + penalty)
    return best[n]


def cost(value: np.ndarray, at: list[int], penalty: float) -> float:
    parts = np.split(value, at)
    return sum(float(((p - p.mean()) ** 2).sum()) for p in parts) + penalty * len(at)


@pytest.mark.parametrize("smallest", [1, 2, 4])
def test_pelt_is_exact(smallest: int) -> None:
    rng = np.random.default_rng(smallest)
    several = 0
    for _ in range(40):
        n = int(rng.integers(8, 36))
        value = rng.standard_normal(n) + np.cumsum(3 * (rng.random(n) < 0.12))
        penalty = float(rng.choice([0.5, 2.0, 2 * np.log(n)]))
        at = pelt(value, penalty, smallest)
        assert min(np.diff([0, *at, n])) >= smallest
        assert cost(value, at, penalty) == pytest.approx(exact(value, penalty, smallest))
        several += len(at) > 1
    assert several > 10


def series(jump: float, n: int = 30, at: int = 18, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    value = 0.1 * rng.standard_normal(n) + jump * (np.arange(n) >= at)
    steps = 100 * np.arange(n)
    return pd.DataFrame({"branch": "a", "step": steps, "tokens": steps * 7, "x": value})


def strongest(found: pd.DataFrame) -> pd.Series:
    """The planted one: of a series this short noise alone makes a change now and then."""
    return found.loc[found["size"].abs().idxmax()]


@pytest.mark.parametrize("method", ["pelt", "cusum"])
def test_a_jump_is_found_with_its_interval(method: str) -> None:
    event = strongest(find_changes(series(1.0), "x", method=method))
    assert event[["after_step", "step", "tokens", "after_tokens"]].tolist() == [
        1700, 1800, 12600, 11900,
    ]  # fmt: skip
    assert event["after"] - event["before"] == pytest.approx(1.0, abs=0.1)
    assert event["size"] == pytest.approx(10, rel=0.7) and event["n"] == 30
    assert event["low_step"] <= 1800 <= event["high_step"]
    down = strongest(find_changes(series(-1.0), "x", method=method))
    assert down["step"] == 1800 and down["size"] < 0


@pytest.mark.slow
def test_interval_of_the_location_covers() -> None:
    """The nominal 95 %, for jumps of 2 SD: few points, so a wide band is asked for."""
    hits = found = 0
    for seed in range(40):
        out = find_changes(series(0.2, 60, 30, seed), "x", bootstrap=200)
        if len(out) == 1 and out["status"].item() == "ok":
            found += 1
            hits += int(out["low_step"].item() <= 3000 <= out["high_step"].item())
    assert found >= 20 and hits / found >= 0.85


@pytest.mark.parametrize("method", ["pelt", "cusum"])
def test_quiet_series_have_few_changes(method: str) -> None:
    calm = pd.concat([series(0.0, seed=s).assign(branch=str(s)) for s in range(60)])
    out = find_changes(calm, "x", method=method, bootstrap=0)
    assert (out["status"] == "no change").sum() >= {"pelt": 50, "cusum": 43}[method]


def test_thin_constant_and_unknown_values() -> None:
    few = find_changes(series(1.0, 7, 3), "x")
    assert few["status"].tolist() == ["too few points: 7, at least 8 are needed"]
    assert few["step"].isna().all() and few["n"].tolist() == [7]
    flat = series(0.0).assign(x=3.0)
    assert find_changes(flat, "x")["status"].tolist() == ["no change"]
    flat.loc[20:, "x"] = 4.0
    for method in ("pelt", "cusum"):
        out = find_changes(flat, "x", method=method)
        assert out["step"].tolist() == [2000] and np.isnan(out["size"].item())
    holes = series(1.0)
    holes.loc[[2, 17], "x"] = np.nan
    out = find_changes(holes, "x")
    assert set(out["n"]) == {28} and strongest(out)["after_step"] == 1600


def test_series_are_told_apart() -> None:
    both = pd.concat([series(1.0).assign(name="u"), series(0.0).assign(name="v")])
    out = find_changes(both, "x", by=["branch", "name"])
    assert out["name"].drop_duplicates().tolist() == ["u", "v"]
    for name, jump in (("u", 1.0), ("v", 0.0)):
        alone = find_changes(series(jump), "x").assign(name=name)
        mine = out[out["name"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, alone[out.columns], check_dtype=False)
    with pytest.raises(LogError, match="a step repeats.*`by`"):
        find_changes(both, "x")
    with pytest.raises(LogError, match="columns .'y'. are missing"):
        find_changes(both, "y")
    with pytest.raises(LogError, match="allowed are"):
        find_changes(both, "x", method="bocpd")
