"""Measure what is in memory, from inside a training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from analysis360.engine import plan
from analysis360.errors import StatisticError
from analysis360.runs import open_memory

if TYPE_CHECKING:
    import torch

__all__ = ["measure"]


def measure(
    state_dict: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    statistics: Sequence[str] | None = None,
    *,
    states: Sequence[str] = ("weight",),
    step: int | None = None,
    tokens: int | None = None,
) -> pd.DataFrame:
    """Measure a model, and its optimizer, as they are now.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor
        ``model.state_dict()``. Nothing is changed in it.
    optimizer : torch.optim.Optimizer, optional
        With Adam's moments, for the statistics of those.
    statistics, states
        As in `analysis360.plan`.
    step, tokens : int, optional
        Where training is, for the table's columns; the step is the optimizer's by default.

    Returns
    -------
    DataFrame
        The same table that a run on disk gives, with one checkpoint.

    Raises
    ------
    StatisticError
        If a statistic or state is unknown, or none of those that are named can be measured.

    Examples
    --------
    >>> import analysis360 as a360, torch
    >>> model = torch.nn.Linear(3, 2, bias=False)
    >>> _ = model.weight.data.fill_(2.0)
    >>> table = a360.measure(model.state_dict(), statistics=["rms", "l2_norm"])
    >>> table[["name", "rms"]].values.tolist()
    [['weight', 2.0]]
    """
    run = open_memory(state_dict, optimizer, step=step, tokens=tokens)
    made = plan(run, statistics, states=states, against=())
    if statistics and not made.statistics:  # nobody sees the plan, which says why
        why = "; ".join(f"{what}: {reason}" for what, reason in made.skipped)
        raise StatisticError(f"nothing can be measured: {why}")
    return made.run(progress=False)
