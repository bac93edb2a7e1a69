"""Agreement of rankings, against scipy, loops and the level of chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis360.branches import rank_agreement
from analysis360.errors import TableError


def ranking(sizes):
    names = [f"w{i:02d}" for i in range(len(sizes))]
    frame = pd.DataFrame({"name": names, "layer": 1, "log2_ratio": sizes})
    return frame.sort_values("log2_ratio", key=abs, ascending=False, kind="stable")


def test_agreement_is_kendalls_and_the_overlap_that_of_sets():
    drawn = np.random.default_rng(0)
    sizes = drawn.standard_normal((3, 12))
    sizes[1, :4] = sizes[1, 0]  # ties
    runs = {name: ranking(row) for name, row in zip("abc", sizes)}
    found = rank_agreement(runs, top=4, draws=200).set_index(["one", "other"])
    taus, overlaps = [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        row = found.loc["abc"[i], "abc"[j]]
        tau = scipy_stats.kendalltau(np.abs(sizes[i]), np.abs(sizes[j])).statistic
        first = [set(np.argsort(-np.abs(sizes[k]), kind="stable")[:4]) for k in (i, j)]
        taus.append(tau)
        overlaps.append(len(first[0] & first[1]) / 4)
        assert row["tau"] == pytest.approx(tau, abs=1e-6)
        if 1 not in (i, j):
            assert row["overlap"] == overlaps[-1]
        assert row["overlap_chance"] == pytest.approx(4 / 12) and row["n"] == 12
    assert found.loc["all", ""]["tau"] == pytest.approx(np.mean(taus), abs=1e-6)


def test_chance_is_that_of_random_orders():
    """97.5 % of Kendall's tau: normal with variance 2(2n+5)/(9n(n-1)) for large n (Kendall)."""
    n = 40
    drawn = np.random.default_rng(1)
    runs = {str(k): ranking(drawn.standard_normal(n)) for k in range(2)}
    row = rank_agreement(runs, top=10).iloc[0]
    sd = np.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    assert row["tau_chance"] == pytest.approx(1.96 * sd, rel=0.08)
    high = scipy_stats.hypergeom(n, 10, 10).ppf(0.975) / 10
    assert abs(row["overlap_high"] - high) <= 0.1
    same = rank_agreement({"a": runs["0"], "b": runs["0"]}, draws=99).iloc[0]
    assert (same["tau"], same["overlap"], same["p"]) == (pytest.approx(1), 1, 0.01)


def test_thin_and_wrong_rankings():
    few = rank_agreement({"a": ranking([1.0, 2.0]), "b": ranking([1.0, 2.0])}, draws=10)
    assert few["tau"].isna().all() and "2 tensors in common" in few["status"].iloc[0]
    flat = rank_agreement({"a": ranking([1.0] * 5), "b": ranking([1.0, 2, 3, 4, 5])}, draws=10)
    assert flat["tau"].isna().all() and flat["status"].eq("a run has no order").all()
    with pytest.raises(TableError, match="needs two"):
        rank_agreement({"a": ranking([1.0])})
    twice = pd.concat([ranking([1.0, 2.0])] * 2)
    with pytest.raises(TableError, match="'b' has several rows"):
        rank_agreement({"a": ranking([1.0, 2.0]), "b": twice})
