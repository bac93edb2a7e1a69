"""What accumulators share on a tile is the same as what each would take alone."""

import pytest
import torch

from analysis360.stats import accumulators
from analysis360.stats.tiles import count_zeros, once, sharing


def test_once_within_sharing_and_each_time_outside():
    made = []
    a, b = torch.ones(3), torch.zeros(3)

    def make(x):
        return lambda: made.append(1) or x.sum()

    once("total", (a,), make(a)), once("total", (a,), make(a))
    assert len(made) == 2
    with sharing():
        assert once("total", (a,), make(a)) is once("total", (a,), make(a))
        assert len(made) == 3
        assert once("total", (b,), make(b)) == 0 and once("total", (a,), make(a)) == 3
        assert len(made) == 5  # only the last is kept
    once("total", (a,), make(a))
    assert len(made) == 6
    with pytest.raises(RuntimeError), sharing():
        once("total", (a,), make(a))
        raise RuntimeError
    once("total", (a,), make(a))
    assert len(made) == 8


def test_sharing_changes_no_sum_whatever_the_order():
    """Two references use the same scratch in turns: nothing of one is taken for the other's."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(3))
    b[:100], c[:7] = a[:100], a[:7]
    calls = [
        (accumulators[name], arrays)
        for arrays in ({"reference": b}, {"reference": c}, {"reference": b})
        for name in ("difference_sums", "change_counts", "norm_sums", "moment_sums", "value_counts")
    ]
    calls = [
        (m, {k: v for k, v in ({"tensor": a} | more).items() if k in m.inputs}) for m, more in calls
    ]
    for order in (calls, calls[::2] + calls[1::2]):
        alone = [measure.function(**given) for measure, given in order]
        with sharing():
            shared = [measure.function(**given) for measure, given in order]
        assert all(torch.equal(x, y) for x, y in zip(alone, shared))


def test_count_zeros():
    x = torch.tensor([0.0, -0.0, 5e-324, float("nan"), float("inf"), 0.0], dtype=torch.float64)
    assert count_zeros(x) == 3
