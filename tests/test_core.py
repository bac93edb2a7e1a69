"""Selections of every type that a notebook holds, and forks."""

import numpy as np
import pandas as pd
import pytest

from analysis360.core import Checkpoint, Fork, Label, Run
from analysis360.errors import CheckpointNotFound, FormatError

ENTRIES = tuple(
    Checkpoint("r", branch, number, 100 * number, None, "memory://0", "", f"{branch}_{number}")
    for branch in ("main", "spike")
    for number in range(8)
)
RUN = Run("r", "r", "here", ENTRIES)
Q = [Label(layer, "attn.q") for layer in range(8)]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (5, [5]),
        (np.int64(5), [5]),
        (np.array(5), [5]),
        (np.float64(5.0), [5]),
        (np.array([2, 5]), [2, 5]),
        ({5, 2}, [2, 5]),
        (range(2, 4), [2, 3]),
        ((n for n in (2, 5)), [2, 5]),
        (pd.Series([2, 5], dtype="Int64"), [2, 5]),
        (pd.Series([2, None, 5]), [2, 5]),
        (pd.Index([2, 5]), [2, 5]),
        (slice(2, 4), [2, 3, 4]),
        (slice(np.int64(6), None), [6, 7]),
    ],
)
def test_numbers_may_be_of_numpy_and_pandas(wanted, numbers):
    kept = RUN.select(branch="spike", number=wanted)
    assert [c.number for c in kept.entries] == numbers


def test_layers_and_modules_last_for_every_tensor():
    run = RUN.select(layers=(n for n in (1, 2)), modules=(m for m in ("attn", "mlp")))
    assert [run.keeps(q) for q in Q] == [False, True, True, *[False] * 5]
    assert run.layers == (1, 2) and run.modules == ("attn", "mlp")
    assert not run.keeps(Label(1, "norm.attn"))
    assert RUN.select(layers=np.int64(3)).keeps(Q[3])
    assert RUN.select(layers=pd.Series([3, 4])).keeps(Q[4])
    assert run.select(number=1).layers == (1, 2)
    assert Run("r", "r", "here", ENTRIES, layers=[1], modules=["attn.q"]).keeps(Q[1])


def test_branches_by_a_column():
    kept = RUN.select(branch=pd.Series(["spike"]), step=np.array([100]))
    assert [c.name for c in kept.entries] == ["spike_1"]


def test_what_selects_nothing():
    with pytest.raises(CheckpointNotFound, match=r"no checkpoint with number=\[9, 10\]"):
        RUN.select(number=(n for n in (9, 10)))
    with pytest.raises(CheckpointNotFound, match=r"number=2\.5"):
        RUN.select(number=np.float64(2.5))
    with pytest.raises(TypeError, match="cannot select by <object"):
        RUN.select(number=object())
    with pytest.raises(TypeError, match=r"a slice has two ends.*give a range, such"):
        RUN.select(number=slice(0, 8, 2))


def test_fork_is_at_a_number_or_at_a_step():
    assert (Fork("a", "b", 3).number, Fork("a", "b", step=0).step) == (3, 0)
    for wrong in ({}, {"number": 3, "step": 300}):
        with pytest.raises(FormatError, match="fork of 'a' from 'b'"):
            Fork("a", "b", **wrong)
