"""Which column of a log is which, and what its cells say.

A small table, `SYNONYMS`; what a log does not say is left empty, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from analysis360.errors import LogError
from analysis360.logs.units import Units, steps_of

__all__ = ["FIRST", "SYNONYMS", "canonical", "plain_name"]

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "branch": ("branch", "run"),
    "parent": ("parent",),
    "step": (
        "step", "global_step", "train_global_step", "trainer_global_step", "training_step",
        "train_step", "iteration", "iterations", "iter", "steps", "_step",
    ),
    "tokens": (
        "tokens", "tokens_seen", "consumed_tokens", "consumed_train_tokens", "total_tokens",
        "train_tokens", "throughput_total_tokens", "num_input_tokens_seen", "num_tokens",
        "n_tokens_seen",
    ),
    "samples": (
        "samples", "samples_seen", "consumed_samples", "consumed_train_samples", "total_samples",
    ),
    "loss": (
        "loss", "train_loss", "training_loss", "lm_loss", "train_lm_loss", "train_ce_loss",
        "train_crossentropyloss", "ce_loss", "nll", "loss_train", "train_loss_step",
        "loss_metrics_global_avg_loss", "lm_loss_training_lm_loss",
    ),
    "grad_norm": (
        "grad_norm", "gnorm", "gradient_norm", "global_grad_norm", "total_grad_norm",
        "train_grad_norm", "optim_total_grad_norm", "grad_norm_total", "grad_norm_grad_norm",
    ),
    "lr": (
        "lr", "learning_rate", "train_lr", "train_learning_rate", "optim_learning_rate_group0",
        "optim_lr_group_0", "optim_lr", "learning_rate_learning_rate",
    ),
}  # fmt: skip
"""Accepted names of a column, best first; compared in lower case, other signs taken as ``_``."""

FIRST = ("branch", "parent", "step", "tokens", "loss")
_MADE = ("segment", "overwritten_by", "tokens_from", "samples_from")
_NAN = {"nan", "-nan", "+nan", "null", "none", "n/a", "na"}


def plain_name(name: str) -> str:
    """Lower case, other signs as ``_``, none at the end.

    Examples
    --------
    >>> plain_name("train/Loss"), plain_name("train loss"), plain_name("optim/LR (group 0)")
    ('train_loss', 'train_loss', 'optim_lr_group_0')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).rstrip("_")


def canonical(raw: pd.DataFrame, where: str, units: Units) -> pd.DataFrame:
    """Rename by `SYNONYMS`, make numbers of cells, drop rows of another kind.

    Parameters
    ----------
    raw : DataFrame
        Cells as written.
    where : str
        Name of the log, for messages.
    units : Units
        To find steps where the log counts tokens or samples alone.

    Returns
    -------
    DataFrame
        With ``step`` and ``loss``; ``tokens`` and ``samples`` (Int64) as far as the log has them.
    """
    if set(_MADE) <= set(raw.columns):  # a LOSS frame that was saved: these are made anew
        raw = raw.drop(columns=list(_MADE))
    plain = {plain_name(str(column)): column for column in reversed(list(raw.columns))}
    plain |= {column: column for column in raw.columns if column in SYNONYMS}
    found = {
        name: next((plain[s] for s in synonyms if s in plain), None)
        for name, synonyms in SYNONYMS.items()
    }
    no_clock = found["step"] is None and not units.gives_steps([n for n, c in found.items() if c])
    for name, missing in (("step", no_clock), ("loss", found["loss"] is None)):
        if missing:
            raise LogError(
                f"{where}: no column for the {name}; it has {[str(c) for c in raw.columns]}, "
                f"accepted are {list(SYNONYMS[name])}"
                + (", or tokens with tokens_per_step=" if name == "step" else "")
            )
    taken = {column: name for name, column in found.items() if column is not None}
    frame = raw.rename(columns=taken)
    sparse = raw.attrs.get("sparse", False)
    frame = frame[~(_blank(frame["loss"]) if sparse else _other_kind(frame))]
    if frame.empty:
        raise LogError(f"{where}: no row has a loss")
    out = pd.DataFrame(index=frame.index)
    for name in frame.columns:
        if name in ("branch", "parent"):
            out[name] = frame[name].astype("str").fillna("")
        elif name in ("step", "tokens", "samples"):
            out[name] = _whole(frame[name], where)
        elif name in SYNONYMS:
            out[name] = _numbers(frame[name], where)
        elif not _blank(frame[name]).all():
            out[name] = _lenient(frame[name])
    for name in ("tokens", "samples"):
        if name not in out:
            out[name] = pd.Series(pd.NA, index=out.index, dtype="Int64")
    if "step" not in out:
        out["step"] = steps_of(out, units, where)
    return out


def _blank(column: pd.Series) -> pd.Series:
    text = column.astype("object")
    return text.isna() | text.map(lambda cell: isinstance(cell, str) and not cell.strip())


def _other_kind(frame: pd.DataFrame) -> pd.Series:
    """Rows without a loss that fill a column which no row with a loss fills."""
    without = _blank(frame["loss"])
    if not without.any():
        return without
    filled = ~frame.apply(_blank)
    foreign = [c for c in frame.columns if filled[c].any() and not filled.loc[~without, c].any()]
    return without & filled[foreign].any(axis=1)


def _numbers(column: pd.Series, where: str) -> pd.Series:
    """Make float64; blank and NaN stay NaN, anything else that is no number is an error."""
    values = pd.to_numeric(column.astype("object"), errors="coerce").astype("float64")
    unclear = values.isna() & ~_blank(column)
    wrong = unclear & ~column.astype("object").map(lambda c: str(c).strip().lower() in _NAN)
    if wrong.any():
        raise LogError(f"{_first(column, wrong, where)}, no number")
    return values


def _whole(column: pd.Series, where: str) -> pd.Series:
    values = _numbers(column, where)
    wrong = values % 1 != 0  # NaN is none either
    if column.name != "step":
        wrong &= values.notna()
    if wrong.any():
        raise LogError(f"{_first(column, wrong, where)}, not a whole number")
    return values.astype("Int64")


def _first(column: pd.Series, wrong: pd.Series, where: str) -> str:
    """Name the first wrong cell of a column: file, line and what it holds."""
    at = column[wrong]
    return f"{where}: {at.index.name} {at.index[0]}: {column.name} is {at.iloc[0]!r}"


def _lenient(column: pd.Series) -> pd.Series:
    """Numbers if every cell is one or blank, else the cells as they are."""
    try:
        return _numbers(column, "")
    except (LogError, TypeError, ValueError):
        return column.astype("object").map(lambda c: c if c is None else str(c)).astype("str")
