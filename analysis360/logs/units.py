"""Steps, tokens and samples: what a log does not say is derived where the run tells how.

A sample is a sequence: ``tokens = samples × sequence length``, ``tokens = steps × tokens per step``
(derived; exact while batch and sequence length are constant). Nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis360.core import Batch, Run
from analysis360.errors import LogError

__all__ = ["Units", "fill_units", "steps_of", "units_of"]


@dataclass(frozen=True)
class Units:
    """What is known of a run's clock.

    Attributes
    ----------
    tokens_per_step : int or None
        Where it is the same for all steps.
    sequence_length : int or None
        Tokens of a sample.
    batch : Batch or None
        Where the number of samples a step rose with training.
    why : str
        Why tokens cannot be had from steps.
    """

    tokens_per_step: int | None = None
    sequence_length: int | None = None
    batch: Batch | None = None
    why: str = "no tokens_per_step is given"

    @property
    def samples_per_step(self) -> int | None:
        """One whole number, or None."""
        if not self.tokens_per_step or not self.sequence_length:
            return None
        count, rest = divmod(self.tokens_per_step, self.sequence_length)
        return None if rest else count

    def gives_steps(self, there: Iterable[str]) -> bool:
        """Whether steps follow from these columns."""
        per = {"tokens": self.tokens_per_step, "samples": self.samples_per_step}
        return any(per.get(name) for name in there)


def units_of(run: Run | None, tokens_per_step: int | None, sequence_length: int | None) -> Units:
    """Whatever was given, and else what the run's description and checkpoints say.

    Examples
    --------
    >>> units_of(None, 4_177_920, 2048).samples_per_step
    2040
    """
    for name, value in (("tokens_per_step", tokens_per_step), ("sequence_length", sequence_length)):
        if value is not None and value < 1:
            raise LogError(f"{name}={value}: expected a whole number from 1 on")
    given = Units(tokens_per_step, sequence_length)
    if run is None:
        return given
    batch = run.batch
    length = sequence_length or run.sequence_length or (batch.length if batch else None)
    given = replace(given, sequence_length=length)
    if tokens_per_step is not None:
        return given
    known = [c for c in run.entries if c.step and c.tokens is not None]
    ratios = {(c.tokens or 0) / (c.step or 1) for c in known}
    if len(ratios) == 1 and (only := ratios.pop()) == int(only) > 0:
        return replace(given, tokens_per_step=int(only))
    if batch is not None:
        return replace(given, batch=batch)
    why = "the run's checkpoints have no tokens"
    if known:
        why = "the run's checkpoints agree on no whole number of tokens per step"
    return replace(given, why=f"{why}, and no tokens_per_step is given")


def steps_of(frame: pd.DataFrame, units: Units, where: str) -> pd.Series:
    """Steps of a log that counts tokens or samples alone.

    Raises
    ------
    LogError
        If one of them is no whole number of steps.
    """
    for name, per in (("tokens", units.tokens_per_step), ("samples", units.samples_per_step)):
        if per and frame[name].notna().all():
            wrong = frame[name] % per != 0
            if wrong.any():
                raise LogError(
                    f"{where}: {frame.index.name} {frame.index[wrong][0]}: {name} is "
                    f"{frame[name][wrong].iloc[0]}, no multiple of the {per} of a step"
                )
            return (frame[name] // per).astype("Int64")
    raise LogError(f"{where}: no steps, and not every row has tokens or samples to count them by")


def fill_units(frame: pd.DataFrame, units: Units) -> pd.DataFrame:
    """Fill `tokens` and `samples`, and say in ``tokens_from`` and ``samples_from`` how.

    Parameters
    ----------
    frame : DataFrame
        With step, tokens and samples (Int64).
    units : Units

    Returns
    -------
    DataFrame
        The origins are ``"logged"``, a formula such as ``"step × 256"``, or ``"not known: …"``
        where the value is missing.

    Examples
    --------
    >>> log = pd.DataFrame({"step": [1, 2], "tokens": [pd.NA, pd.NA], "samples": [4, pd.NA]})
    >>> fill_units(log.astype("Int64"), Units(64, 16))[["tokens", "tokens_from"]]
       tokens   tokens_from
    0      64  samples × 16
    1     128     step × 64
    """
    frame = frame.copy()
    step, length, per_step = frame["step"], units.sequence_length, units.tokens_per_step
    tokens, samples = frame["tokens"], frame["samples"]
    planned = None if units.batch is None else _planned(step, units.batch)
    ways = {
        "tokens": [
            (f"samples × {length}", samples * length if length else None),
            (f"step × {per_step}", step * per_step if per_step else None),
            ("the run's batch plan", planned * length if planned is not None and length else None),
        ],
        "samples": [
            (f"step × {units.samples_per_step}",
             step * units.samples_per_step if units.samples_per_step else None),
            ("the run's batch plan", planned),
            (f"tokens / {length}", _divided(tokens, length) if length else None),
        ],
    }  # fmt: skip
    lacks = {"tokens": units.why, "samples": "no sequence_length is given"}
    if length:
        lacks["samples"] = f"neither steps nor tokens tell samples: {units.why}"
        if per_step and units.samples_per_step is None:
            lacks["samples"] = f"{per_step} tokens per step are no whole number of samples"
    for name, choices in ways.items():
        frame[name], frame[f"{name}_from"] = _filled(frame[name], choices, lacks[name])
    return frame


def _filled(
    column: pd.Series, choices: list[tuple[str, pd.Series | None]], why: str
) -> tuple[pd.Series, pd.Series]:
    origin = pd.Series("logged", column.index, dtype="str")
    for formula, values in choices:
        if values is not None:
            new = column.isna() & values.notna()
            origin = origin.mask(new, formula)
            column = column.fillna(values.astype("Int64"))
    return column, origin.mask(column.isna(), f"not known: {why}")


def _planned(step: pd.Series, batch: Batch) -> pd.Series:
    counts = batch.counts(step.to_numpy(dtype=np.float64))
    return pd.Series(counts, step.index).astype("Int64")


def _divided(tokens: pd.Series, length: int) -> pd.Series:
    return (tokens // length).where(tokens % length == 0)
