"""Registration refuses what would be misread later."""

import numpy as np
import pytest
import torch

from analysis360.errors import StatisticError
from analysis360.stats import accumulator, accumulators, merge, state, statistic, statistics, term
from tests.measured import alone


def test_misspelt_inputs_fail_at_once():
    with pytest.raises(StatisticError, match="unknown input 'sum_square'.*max_abs_value"):

        @statistic(degree=1)
        def mine(sum_square):
            return sum_square

    with pytest.raises(StatisticError, match="names unknown inputs.*'tensr'"):

        @accumulator({"my_sum": "sum"})
        def my_sums(tensr):
            return tensr

    with pytest.raises(StatisticError, match="names unknown inputs.*'momentum'"):

        @state()
        def my_state(momentum):
            return momentum


def test_names_that_mean_something_else_are_refused():
    with pytest.raises(StatisticError, match="'moment_sums' has a result called 'count' already"):

        @accumulator({"count": "sum", "above": "sum"})
        def above_one(tensor):
            return tensor

    assert "above_one" not in accumulators
    with pytest.raises(StatisticError, match="cannot be called 'numel'"):

        @accumulator({"numel": "sum"})
        def sizes(tensor):
            return tensor

    with pytest.raises(StatisticError, match="the table has that column"):

        @statistic(degree=1)
        def layer(m2):
            return m2

    with pytest.raises(StatisticError, match="cannot be called 'weight'"):

        @state()
        def weight(exp_avg):
            return exp_avg

    with pytest.raises(StatisticError, match="merges are sum, max or min"):

        @accumulator({"n": "sum", "mean_of_mine": "moments"})
        def half_a_moment(tensor):
            return tensor

    with pytest.raises(StatisticError, match="names no measured result"):

        @statistic()
        def constant(numel):
            return numel


def test_a_cell_may_be_run_twice():
    for factor in (1, 2):

        @accumulator({"my_above": "sum"})
        def my_above_sums(tensor):
            return torch.stack([(tensor > 0).sum().to(torch.float64)])

        @statistic(degree=0, low=0)
        def above_zero(my_above, count):
            """Elements above zero."""
            return my_above * factor  # noqa: B023 - used before the loop goes on

    try:
        got = alone(torch.tensor([1.0, -1.0, 2.0]), ["above_zero"])["above_zero"]
    finally:
        statistics.remove("above_zero")
        accumulators.remove("my_above_sums")
    assert got == 4  # the second definition replaced the first


def test_an_accumulator_of_the_wrong_shape_says_so():
    @accumulator({"my_pair": "sum", "my_other": "sum"})
    def my_pair_sums(tensor):
        return torch.zeros(3, dtype=torch.float64)

    @statistic(degree=0)
    def my_pair_first(my_pair):
        """First."""
        return my_pair

    try:
        with pytest.raises(StatisticError, match=r"memory: w: 'my_pair_sums'.*shape \(3,\)"):
            alone(torch.ones(3), ["my_pair_first"])
    finally:
        statistics.remove("my_pair_first")
        accumulators.remove("my_pair_sums")


def test_merging_blocks_is_measuring_the_whole():
    """Moments of parts, merged in groups, are those of the concatenation."""
    generator = torch.Generator().manual_seed(0)
    parts = [3 + torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 1, 400, 37)]
    entry = accumulators["moment_sums"]
    rows = np.stack([entry.function(p).numpy() for p in parts])
    merged = merge(entry.fields, rows, np.array([0, 2]))
    for got, group in zip(merged, (parts[:2], parts[2:])):
        want = entry.function(torch.cat(group)).numpy()
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_mistakes_are_named():
    with pytest.raises(StatisticError, match="unknown input 'sqare_sum'; did you mean square_sum"):
        statistic()(lambda sqare_sum: sqare_sum)
    with pytest.raises(StatisticError, match="'l2_norm' is a statistic.*made of square_sum"):
        statistic()(lambda l2_norm: l2_norm)
    with pytest.raises(StatisticError, match=r"invariant=\['signs'\].*allowed: sign, permutation"):
        statistic(invariant=("signs",))


def test_terms_are_sums_of_numbers():
    with pytest.raises(StatisticError, match="has to name results that are numbers"):
        term()(lambda magnitude_bins: magnitude_bins)
    with pytest.raises(StatisticError, match="unknown input 'sqare_sum'"):
        term()(lambda sqare_sum: sqare_sum)
    with pytest.raises(StatisticError, match="a term is called 'undecayed_sq' already"):
        accumulator({"undecayed_sq": "sum"})(lambda tensor: tensor)
