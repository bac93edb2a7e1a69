"""How often an undisturbed branch is said to depart: measured on forks of a small trained run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

import analysis360 as a360

FORKS = 40
STATISTICS = [
    "rms", "max_abs", "kurtosis", "displacement", "cosine", "update_rms", "grad_norm_ema",
    "momentum_norm",
]  # fmt: skip


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Table of 40 forks that differ in the order of ordinary data, and one with the odd chunk."""
    from analysis360.demo.config import DemoConfig
    from analysis360.demo.forks import train_forks

    config = DemoConfig(
        hidden=16, layers=2, heads=2, ffn=32, context=32, batch=4, chunk_steps=10, trunk_chunks=3,
        total_chunks=6, return_chunk=5, peak_lr=1e-2, warmup=5, dense=(), heldout_every=30,
        heldout_windows=4, bench_windows=4,
    )  # fmt: skip
    drawn = np.random.default_rng(0)
    pool = [n for n in range(4, 17) if n != config.odd_chunk]
    orders = {f"f{i:02d}": [int(n) for n in drawn.permutation(pool)[:3]] for i in range(FORKS)}
    orders["odd"] = [config.odd_chunk, *orders["f00"][1:]]
    folder = train_forks(tmp_path_factory.mktemp("forks") / "run", config, orders, progress=False)
    made = a360.plan(a360.open_run(folder), STATISTICS, against=("ancestor",))
    return made.run(progress=False)


def departed(table, branch, placebos):
    found = a360.first_departure(a360.score_branches(table, branch, placebos=placebos))
    assert found["familywise"].iloc[0] <= 0.05
    return found[found["by_step"].notna()]


@pytest.mark.slow
def test_false_departures_are_as_rare_as_is_said(forks):
    """Each of 40 placebos against the 20 of the other half: within the binomial interval of 5 %.

    Among forks that serve as branch and placebo in turn exactly one departs, whatever they are
    (`test_placebos.py`), which would tell nothing of them. Two halves can go wrong.
    """
    names = [f"f{i:02d}" for i in range(FORKS)]
    halves = names[: FORKS // 2], names[FORKS // 2 :]
    outside = [
        name
        for mine, other in (halves, halves[::-1])
        for name in mine
        if len(departed(forks, name, other))
    ]
    low, high = scipy_stats.binom.interval(0.95, FORKS, 0.05)
    assert low <= len(outside) <= high, outside


@pytest.mark.slow
def test_the_odd_chunk_is_a_departure(forks):
    found = departed(forks, "odd", [f"f{i:02d}" for i in range(20)])
    assert set(found["after_step"]) == {30} and set(found["by_step"]) == {40}
    assert found["name"].nunique() > 1  # a tied set
