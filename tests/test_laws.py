"""The laws that every registered statistic declares, proved for all of them at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis360.stats import SCALARS, accumulators, statistics, wholes
from tests.measured import close

SHAPE = (6, 9)
STEP, BETA1, BETA2, EPS = 50.0, 0.9, 0.95, 1e-8

matrices = st.lists(
    st.floats(-4, 4, allow_nan=False, width=32), min_size=54, max_size=54
).map(lambda v: torch.tensor(v, dtype=torch.float64).view(SHAPE))  # fmt: skip


def fields(a, b):
    """Results of every accumulator and whole-matrix step; `a` is tensor and first moment."""
    flat, other = a.reshape(-1), b.reshape(-1)
    # second moments that a first moment of this size can have
    given = {
        "tensor": flat, "reference": other, "exp_avg": 0.01 * flat,
        "exp_avg_sq": (0.02 * flat.abs()).square() + (0.001 * other).square(),
        "step": STEP, "beta1": BETA1, "beta2": BETA2, "eps": EPS,
    }  # fmt: skip
    found = {}
    for _, entry in accumulators.items():
        if all(name in given for name in entry.inputs):
            values = entry.function(**{name: given[name] for name in entry.inputs})
            found |= dict(zip(entry.fields, values.tolist()))
    for _, entry in wholes.items():
        found |= dict(zip(entry.fields, entry.function(a).tolist()))
    return found


def value(entry, a, b):
    scalars = {"numel": a.numel(), "step": STEP, "beta1": BETA1, "beta2": BETA2, "eps": EPS,
               "lr": 1e-3, "lr_sum": 0.5, "weight_decay": 0.1}  # fmt: skip
    known = fields(a, b) | scalars
    with np.errstate(all="ignore"):
        return float(entry.function(**{n: np.float64(known[n]) for n in entry.inputs}))


def orthogonal(seed=0):
    return torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ).Q


TRANSFORMS = {
    "sign": lambda x: -x,
    "permutation": lambda x: x[torch.randperm(6, generator=torch.Generator().manual_seed(1))],
    "transpose": lambda x: x.T.contiguous(),
    "orthogonal": lambda x: orthogonal() @ x,
}

ABSOLUTE = 1e-9  # of values of order 1: what cancels exactly on paper leaves rounding
NAMES = list(statistics)


def agree(got, want):
    return close(got, want, tolerance=1e-7) or abs(got - want) < ABSOLUTE


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(a=matrices, b=matrices)
def test_bounds(name, a, b):
    entry, got = statistics[name], value(statistics[name], a, b)
    if math.isnan(got):
        return
    assert entry.low is None or got >= entry.low - 1e-9
    assert entry.high is None or got <= entry.high + 1e-9


@pytest.mark.parametrize("law", list(TRANSFORMS))
@settings(max_examples=15, deadline=None)
@given(a=matrices, b=matrices)
def test_invariances(law, a, b):
    change = TRANSFORMS[law]
    for name in NAMES:
        entry = statistics[name]
        moments = any("exp_avg" in m.inputs for m in entry.measures)
        if law not in entry.invariant or (law == "orthogonal" and moments):
            continue
        if law == "orthogonal" and name in ("cosine", "angle", "rel_displacement", "update_ratio"):
            if a.norm() < 1e-3 or b.norm() < 1e-3:
                continue  # the direction of nearly nothing
        got, want = value(entry, change(a), change(b)), value(entry, a, b)
        if name == "angle":  # its rounding is that of a square root of a difference
            assert agree(got, want) or abs(got - want) < 1e-6
        else:
            assert agree(got, want), (name, got, want)


@pytest.mark.parametrize("c", [0.125, 3.0, 1e4])
@settings(max_examples=15, deadline=None)
@given(a=matrices, b=matrices)
def test_degrees(c, a, b):
    for name in NAMES:
        entry = statistics[name]
        if entry.degree is None:
            continue
        want = value(entry, a, b) * c**entry.degree
        got = value(entry, c * a, c * b)
        tolerance = 1e-6 * max(1.0, c**entry.degree)
        assert agree(got, want) or abs(got - want) < tolerance * 1e-3, (name, got, want)


def test_every_statistic_declares_a_law_and_says_what_it_is():
    for name, entry in statistics.items():
        assert entry.degree is not None or entry.invariant or entry.low is not None, name
        assert entry.summary.endswith((".", "`.")) or ":" in entry.summary, name
        assert set(entry.inputs) - set(SCALARS), name
