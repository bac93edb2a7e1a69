"""Runs that were restarted: steps that go back cut the log into segments, stitched by one rule.

The rule: where the steps of a branch go back to `s`, the run went on from a checkpoint before `s`.
**The last written wins**: the later rows are what the run continued from. What was logged before at
`s` and after is not lost but becomes a branch of its own, ``"<branch>.cut1"`` (then ``cut2`` …),
whose parent is this branch, or a later cut where its own past was overwritten too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis360.errors import LogError, TableError

__all__ = ["list_restarts", "stitch"]

_MOST = 10


def stitch(frame: pd.DataFrame, where: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Sort by branch and step, with the rows that a restart overwrote as branches of their own.

    Parameters
    ----------
    frame : DataFrame
        Branch, parent and step, in the order of the log.
    where : str
        Name of the log, for messages.

    Returns
    -------
    frame : DataFrame
        Besides ``segment``, the stretch of its branch's log in which a row was written, from 1 on,
        and ``overwritten_by``, the segment that took its place; missing in rows that were kept.
    counts : dict
        ``restarts`` and ``overwritten_rows``.

    Raises
    ------
    LogError
        If steps go back in more than a tenth of a branch's rows (and over ten times).
    """
    frame = frame.reset_index(drop=True)
    frame["segment"] = pd.Series(1, frame.index, dtype="Int64")
    frame["overwritten_by"] = pd.Series(pd.NA, frame.index, dtype="Int64")
    taken = set(frame["branch"])
    counts = {"restarts": 0, "overwritten_rows": 0}
    pieces = []
    for branch, rows in frame.groupby("branch", sort=False):
        steps = rows["step"].to_numpy(dtype=np.int64)
        rows = rows.assign(segment=_segments(steps))
        kept, cuts = _cut(steps, str(branch), where)
        free = (n for n in range(1, len(rows) + len(taken) + 2) if f"{branch}.cut{n}" not in taken)
        names = [f"{branch}.cut{next(free)}" for _ in cuts]
        pieces.append(rows.iloc[kept])
        for number, (name, (lost, parent)) in enumerate(zip(names, cuts, strict=True), start=2):
            piece = rows.iloc[lost].copy()
            piece["branch"] = name
            piece["parent"] = str(branch) if parent is None else names[parent]
            piece["overwritten_by"] = number
            pieces.append(piece)
            counts["overwritten_rows"] += len(lost)
        counts["restarts"] += len(cuts)
    whole = pd.concat(pieces, ignore_index=True)
    kinds = {"branch": "str", "parent": "str", "segment": "Int64", "overwritten_by": "Int64"}
    return whole.astype(kinds), counts


def _segments(steps: np.ndarray) -> np.ndarray:
    back: np.ndarray = np.concatenate([[0], np.diff(steps) <= 0])
    return 1 + np.cumsum(back.astype(np.int64))


def _cut(
    steps: np.ndarray, branch: str, where: str
) -> tuple[list[int], list[tuple[list[int], int | None]]]:
    """Rows kept, and for each restart the rows it overwrote and the cut that is their parent."""
    back = np.flatnonzero(np.diff(steps) <= 0) + 1
    if len(back) > max(_MOST, len(steps) // 10):
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


def list_restarts(loss: pd.DataFrame) -> pd.DataFrame:
    """List the restarts of a log: from where the run went on, and what it left behind.

    Parameters
    ----------
    loss : DataFrame
        LOSS frame, as from `analysis360.read_loss`.

    Returns
    -------
    DataFrame
        One row a restart, in order: ``branch``; ``segment`` (Int64) that it began; ``step`` and
        ``tokens`` (Int64), the first row of it; ``cut``, the branch that holds what it overwrote;
        ``lost_from``, ``lost_to`` (Int64), its first and last step; ``lost_rows`` (int);
        ``rule``, in words.

    Raises
    ------
    TableError
        If a column that `read_loss` makes is missing.

    Examples
    --------
    >>> import analysis360 as a360
    >>> log = pd.DataFrame({"step": [1, 2, 3, 2, 3, 4], "loss": [5, 4, 9, 3.9, 3.5, 3.3]})
    >>> found = a360.list_restarts(a360.read_loss(log))
    >>> found[["branch", "segment", "step", "cut", "lost_from", "lost_to", "lost_rows"]]
      branch  segment  step        cut  lost_from  lost_to  lost_rows
    0   main        2     2  main.cut1          2        3          2
    """
    needed = ["branch", "parent", "step", "tokens", "segment", "overwritten_by"]
    missing = [name for name in needed if name not in loss.columns]
    if missing:
        raise TableError(f"the frame has no {missing}; pass what read_loss returns")
    rows = []
    parents = dict(zip(loss["branch"], loss["parent"], strict=True))
    roots = {str(b): _root(str(b), loss, parents) for b in pd.unique(loss["branch"])}
    family = loss["branch"].map(roots)
    for cut, lost in loss[loss["overwritten_by"].notna()].groupby("branch", sort=False):
        root, segment = roots[str(cut)], int(lost["overwritten_by"].iloc[0])
        new = loss[(family == root) & (loss["segment"] == segment)].sort_values("step")
        rows.append({
            "branch": root, "segment": segment, "step": new["step"].iloc[0],
            "tokens": new["tokens"].iloc[0], "cut": str(cut), "lost_from": lost["step"].iloc[0],
            "lost_to": lost["step"].iloc[-1], "lost_rows": len(lost),
            "rule": f"steps went back to {new['step'].iloc[0]}: the last written wins, "
            f"{len(lost)} rows before it are the branch {cut}",
        })  # fmt: skip
    whole = ["segment", "step", "tokens", "lost_from", "lost_to", "lost_rows"]
    names = ["branch", "segment", "step", "tokens", "cut", "lost_from", "lost_to", "lost_rows"]
    frame = pd.DataFrame(rows, columns=[*names, "rule"])
    frame = frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(("branch", "cut"), "str"))
    return frame.sort_values(["branch", "segment"], ignore_index=True)


def _root(branch: str, loss: pd.DataFrame, parents: dict[str, str]) -> str:
    """The branch that a cut was cut from; a branch that is no cut is its own."""
    while loss.loc[loss["branch"] == branch, "overwritten_by"].notna().all():
        branch = str(parents[branch])
    return branch
