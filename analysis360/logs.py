"""Training logs of several makes, read into one frame: the LOSS frame.

Columns ``branch, parent, step, tokens, loss``, then what the log has (``grad_norm``, ``lr``, …).
Which column of a log is which is a small table, `SYNONYMS`; what a log does not say is left empty,
never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from analysis360.core import Run
from analysis360.errors import LogError
from analysis360.logfiles import parse_log

__all__ = ["SYNONYMS", "read_loss"]

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
    ),
    "loss": (
        "loss", "train_loss", "training_loss", "lm_loss", "train_lm_loss", "train_ce_loss",
        "train_crossentropyloss", "ce_loss", "nll",
    ),
    "grad_norm": (
        "grad_norm", "gnorm", "gradient_norm", "global_grad_norm", "total_grad_norm",
        "train_grad_norm", "optim_total_grad_norm", "grad_norm_total",
    ),
    "lr": (
        "lr", "learning_rate", "train_lr", "train_learning_rate", "optim_learning_rate_group0",
    ),
}  # fmt: skip
"""Accepted names of a column, best first; compared in lower case, other signs taken as ``_``."""

_FIRST = ("branch", "parent", "step", "tokens", "loss")
_NAN = {"nan", "-nan", "+nan", "null", "none", "n/a", "na"}
_RESTARTS = 10


def read_loss(
    source: Run | str | PathLike[str] | pd.DataFrame,
    *,
    which: str = "loss",
    branch: str | None = None,
    tokens_per_step: int | None = None,
) -> pd.DataFrame:
    """Read a training log into a LOSS frame.

    Understood are CSV and TSV; JSON lines; the ``trainer_state.json`` of the Hugging Face Trainer;
    llm.c's ``main.log`` (``s:250 trl:6.18 lr:0.0002 norm:0.9``, whose validation lines
    ``s:250 tel:6.17`` become the column ``val_loss`` of that step's row); and a DataFrame.

    Parameters
    ----------
    source : Run, path or DataFrame
        A `Run` says in ``run.sources[which]`` where its logs lie below ``run.home``.
    which : str
        Which of a run's logs: ``"loss"``, or for example ``"heldout"``. Only for a `Run`.
    branch : str, optional
        Name of the branch for a log that has no column of that name. By default the file's stem if
        that is a branch of the run, the run's only branch, or ``"main"`` for a path or frame.
    tokens_per_step : int, optional
        Fills `tokens` where the log has none: ``step * tokens_per_step``. By default taken from
        the run's checkpoints, where these agree on one whole number.

    Returns
    -------
    DataFrame
        ``branch`` (str), ``parent`` (str, missing for a trunk), ``step`` and ``tokens`` (Int64;
        optimizer steps and tokens seen), ``loss`` (float64, nat per token as logged), then the
        other columns. Each step once per branch, branches in order of appearance, steps rising.

        ``.attrs["log"]`` counts what was done: ``dropped_rows`` (rows of another kind, say of an
        evaluation), ``restarts``, ``overwritten_rows`` and ``nan_loss``.

    Raises
    ------
    LogError
        If there is no such log, or it is empty, damaged, lacks a step or loss column, or has a
        value there that is not a number; the message names file and line.

    Notes
    -----
    *Restarts.* Where the steps of a branch go back to `s`, the run went on from a checkpoint before
    `s`. The later rows win: they are what the run continued from. All that was logged before at
    `s` and after is not lost but becomes a branch of its own, ``"<branch>.cut1"`` (then ``cut2``
    …), with this branch as its parent (or with a later cut, where its own past was overwritten
    too). A log whose steps go back in more than a tenth of its rows (and over ten times) is not in
    the order of training and is an error.

    *Rows without a loss.* A row whose loss is written as NaN is kept. A row whose loss is left
    blank is dropped if it is of another kind, which is to say has a value in a column that no row
    with a loss fills; otherwise it is kept as NaN.

    *Parent.* From a column of that name, or from ``run.forks``. Rows of the parent before the
    first step of a branch are the branch's history.

    Examples
    --------
    >>> import pandas as pd
    >>> log = pd.DataFrame({"iteration": [1, 2, 3, 2, 3], "lm loss": [5.0, 4.0, 9.0, 3.9, 3.5]})
    >>> read_loss(log, tokens_per_step=100)[["branch", "step", "tokens", "loss"]]
          branch  step  tokens  loss
    0       main     1     100   5.0
    1       main     2     200   3.9
    2       main     3     300   3.5
    3  main.cut1     2     200   4.0
    4  main.cut1     3     300   9.0
    """
    if isinstance(source, Run):
        parts = _of_run(source, which, branch)
        per_step = tokens_per_step or _tokens_per_step(source)
        parents = {fork.branch: fork.parent for fork in source.forks}
    else:
        if which != "loss":
            raise LogError(f"which={which!r} chooses among the logs of a Run; the source is no Run")
        parts = [_of_source(source, branch or "main", branch is not None)]
        per_step, parents = tokens_per_step, {}
    counts = {"dropped_rows": sum(part.attrs["dropped"] for part in parts)}
    frame = pd.concat(parts)
    known = frame["parent"].where(frame["parent"].ne(""))
    frame["parent"] = known.fillna(frame["branch"].map(parents).astype("str"))
    if per_step is not None:
        frame["tokens"] = frame["tokens"].fillna(frame["step"] * int(per_step)).astype("Int64")
    where = parts[0].attrs["where"]
    whole = _stitch(frame, counts, where)
    counts["nan_loss"] = int(whole["loss"].isna().sum())
    whole.attrs = {"log": counts}
    return whole


def _of_run(run: Run, which: str, branch: str | None) -> list[pd.DataFrame]:
    paths = run.sources.get(which, ())
    if not paths:
        there = sorted(name for name in run.sources if name != "benchmarks")
        raise LogError(f"{run.name}: the run names no log {which!r}; it names {there}. Pass a path")
    if "://" in run.home:
        raise LogError(
            f"{run.name}: its logs {list(paths)} are at {run.home}, not on this machine; "
            "download them and pass the path: read_loss('train.csv')"
        )
    parts = []
    for path in paths:
        file = Path(run.home) / path
        names = run.branches
        named = file.stem if file.stem in names else names[0] if len(names) == 1 else None
        given = branch is not None
        parts.append(_of_source(file, branch if given else named, given))
    return parts


def _tokens_per_step(run: Run) -> int | None:
    """One whole number of tokens per step on which all checkpoints agree, or None."""
    known = [c for c in run.entries if c.step and c.tokens is not None]
    ratios = {(c.tokens or 0) / (c.step or 1) for c in known}
    only = ratios.pop() if len(ratios) == 1 else 0.5
    return int(only) if only == int(only) else None


def _of_source(
    source: str | PathLike[str] | pd.DataFrame, branch: str | None, given: bool
) -> pd.DataFrame:
    """One log with canonical columns, in the order of the log; `branch` where it names none."""
    if isinstance(source, pd.DataFrame):
        raw, where = source.rename_axis("row"), "the frame"
    else:
        raw, where = parse_log(Path(source)), str(source)
    if raw.empty:
        raise LogError(f"{where}: the log is empty")
    frame = _canonical(raw, where)
    if "branch" not in frame:
        if branch is None:
            raise LogError(f"{where}: no branch column, and the run has several: pass branch=")
        frame["branch"] = branch
    elif given:
        raise LogError(
            f"{where}: it has branches {list(pd.unique(frame['branch']))} of its own; "
            f"choose from the frame instead of passing branch={branch!r}"
        )
    for column in ("branch", "parent"):
        said = frame[column] if column in frame else pd.Series("", frame.index)
        frame[column] = said.astype("str")
    rest = [column for column in frame.columns if column not in _FIRST]
    out = frame[[*_FIRST, *rest]]
    out.attrs = {"where": where, "dropped": len(raw) - len(frame) + raw.attrs.get("skipped", 0)}
    return out


def _canonical(raw: pd.DataFrame, where: str) -> pd.DataFrame:
    """Rename by `SYNONYMS`, make numbers of cells, drop rows of another kind."""
    plain = {_plain(str(column)): column for column in reversed(list(raw.columns))}
    plain |= {column: column for column in raw.columns if column in SYNONYMS}
    found = {
        name: next((plain[s] for s in synonyms if s in plain), None)
        for name, synonyms in SYNONYMS.items()
    }
    for name in ("step", "loss"):
        if found[name] is None:
            raise LogError(
                f"{where}: no column for the {name}; it has {[str(c) for c in raw.columns]}, "
                f"accepted are {list(SYNONYMS[name])}"
            )
    taken = {column: name for name, column in found.items() if column is not None}
    frame = raw.rename(columns=taken)
    frame = frame[~_other_kind(frame)]
    if frame.empty:
        raise LogError(f"{where}: no row has a loss")
    out = pd.DataFrame(index=frame.index)
    for name in frame.columns:
        if name in ("branch", "parent"):
            out[name] = frame[name].astype("str").fillna("")
        elif name in ("step", "tokens"):
            out[name] = _whole(frame[name], where)
        elif name in SYNONYMS:
            out[name] = _numbers(frame[name], where)
        elif not _blank(frame[name]).all():
            out[name] = _lenient(frame[name])
    if "tokens" not in out:
        out["tokens"] = pd.Series(pd.NA, index=out.index, dtype="Int64")
    return out


def _plain(name: str) -> str:
    """Lower case, other signs as ``_``: ``"train/Loss"`` and ``"train loss"`` become the same."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower())


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


def _stitch(frame: pd.DataFrame, counts: dict[str, int], where: str) -> pd.DataFrame:
    """Sort by branch and step, with the rows that a restart overwrote as branches of their own."""
    frame = frame.reset_index(drop=True)
    taken = set(frame["branch"])
    counts |= {"restarts": 0, "overwritten_rows": 0}
    pieces = []
    for branch, rows in frame.groupby("branch", sort=False):
        kept, cuts = _cut(rows["step"].to_numpy(dtype=np.int64), str(branch), where)
        free = (n for n in range(1, len(rows) + len(taken) + 2) if f"{branch}.cut{n}" not in taken)
        names = [f"{branch}.cut{next(free)}" for _ in cuts]
        pieces.append(rows.iloc[kept])
        for name, (lost, parent) in zip(names, cuts, strict=True):
            piece = rows.iloc[lost].copy()
            piece["branch"] = name
            piece["parent"] = str(branch) if parent is None else names[parent]
            pieces.append(piece)
            counts["overwritten_rows"] += len(lost)
        counts["restarts"] += len(cuts)
    return pd.concat(pieces, ignore_index=True).astype({"branch": "str", "parent": "str"})


def _cut(
    steps: np.ndarray, branch: str, where: str
) -> tuple[list[int], list[tuple[list[int], int | None]]]:
    """Rows kept, and for each restart the rows it overwrote and the cut that is their parent."""
    back = np.flatnonzero(np.diff(steps) <= 0) + 1
    if len(back) > max(_RESTARTS, len(steps) // 10):
        raise LogError(
            f"{where}: steps of branch {branch!r} go back {len(back)} times in {len(steps)} rows; "
            "the log is not in the order of training, or mixes runs without a branch column"
        )
    kept: list[int] = list(range(int(back[0]) if len(back) else len(steps)))
    cuts: list[tuple[list[int], int | None]] = []
    for start, stop in zip(back, np.append(back, len(steps))[1:], strict=True):
        first = int(np.searchsorted(steps[kept], steps[start]))
        # a cut whose past is overwritten now goes on from this cut
        for n, (lost, parent) in enumerate(cuts):
            if parent is None and steps[lost[0]] > steps[start]:
                cuts[n] = (lost, len(cuts))
        cuts.append((kept[first:], None))
        kept = [*kept[:first], *range(int(start), int(stop))]
    return kept, cuts
