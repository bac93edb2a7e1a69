"""When and where a branch first left the band of undisturbed branches.

The first of hundreds of tensors, statistics and checkpoints to look unusual is an extreme: it is
held against the extremes of the placebos, and given as a set of tensors and an interval of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from analysis360.branches.placebos import CALIBRATED, DESCRIPTIVE, Z_OF
from analysis360.errors import TableError

__all__ = ["first_departure"]

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_COLUMNS: dict[str, str] = {
    "run": "str", "branch": "str", "to": "str", "threshold": "float64", "familywise": "float64",
    "observed": "float64", "after_step": "Int64", "after_tokens": "Int64", "by_step": "Int64",
    "by_tokens": "Int64", "phase": "str", "name": "str", "layer": "Int64", "module": "str",
    "param": "str", "expert": "Int64", "head": "Int64", "state": "str", "against": "str",
    "statistic": "str", "z": "float64", "outside": "Int64", "tests": "Int64", "placebos": "Int64",
    "label": "str", "status": "str",
}  # fmt: skip
_NEED = [
    "run", "branch", "to", *_TENSOR, "state", "against", "number", "step", "tokens",
    "tokens_since", "phase", "statistic", "z", "label",
]  # fmt: skip


def first_departure(scores: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    r"""Say when a branch first left the band of undisturbed ones, and in which tensors at once.

    Parameters
    ----------
    scores : DataFrame
        SCORES frame, from `score_branches`. What is in it is what is looked at: keep only rows of
        the statistics, tensors and checkpoints that were chosen beforehand.
    level : float
        Probability, in 0 to 1, with which an undisturbed branch may be said to depart anywhere.

    Returns
    -------
    DataFrame
        DEPARTURES frame: one row for each tensor outside the band at the first checkpoint where
        any is. They are a tied set: which was first, the checkpoints do not tell.

        - ``run, branch, to``;
        - ``threshold`` of abs(z), ``familywise``, the level that it holds (NaN if none), and
          ``observed``: the largest abs(z) of this tensor there;
        - ``after_step, after_tokens``: the last checkpoint that was inside, or the fork;
          ``by_step, by_tokens``: the first outside. The departure came in between;
        - ``phase`` of that checkpoint; the tensor; ``state, against, statistic, z`` of its largest
          score; ``outside``: how many of its statistics are;
        - ``tests``: how many scores were looked at; ``placebos``; ``label``; ``status``.

        One row with missing tensor and times where nothing departed; ``observed`` is then the
        largest abs(z) of all, and ``status`` says so.

    Raises
    ------
    TableError
        If columns are missing, or the level is not between 0 and 1.

    Notes
    -----
    *Threshold.* Each placebo's largest abs(z), over all the same tensors, statistics and
    checkpoints, says how large that is by chance. Of n such maxima the
    :math:`\lceil(n+1)(1-\alpha)\rceil`-th smallest is the threshold. If the branch is one more
    placebo, its own maximum is above with probability at most :math:`\alpha` (exchangeability; no
    distribution is assumed, nor that tensors or times are independent). Tensors in which nothing
    happened are named in error with at most this probability too, whatever happened in others:
    scores at a tensor and time use what is measured up to then, but for the scatter, which
    departures can only raise (derived).

    With n placebos no level below 1/(n + 1) can be held: 19 are needed for 5 %. With fewer, the
    largest of their maxima is the threshold, ``familywise`` is 1/(n + 1), and the status says so.

    Only scores that the branch and all placebos have are used.

    *Descriptive* scores, without placebos, are held against the largest of so many independent
    normal values (Šidák). That holds no level: tensors and times are not independent, nor normal.

    After the onset of a spike most departures are its consequences; ``phase`` keeps them apart.
    In the phase ``"onset"`` the two cannot be told apart.

    Examples
    --------
    >>> import pandas as pd
    >>> scores = pd.DataFrame({"run": "r", "branch": "s", "to": "n", "name": ["a", "b"] * 2,
    ...     "layer": [0, 1] * 2, "module": "mlp.up", "param": "weight", "expert": pd.NA,
    ...     "head": pd.NA, "state": "weight", "against": "", "number": [1, 1, 2, 2],
    ...     "step": [10, 10, 20, 20], "tokens": [100, 100, 200, 200], "tokens_since": [50, 50, 150,
    ...     150], "phase": "", "statistic": "rms", "z": [1.0, 2.0, 9.0, 3.0],
    ...     "label": "calibrated", "z of p1": [1.0, -2.5, 0.0, 1.0],
    ...     "z of p2": [0.0, 1.0, 1.0, 2.0]})
    >>> found = first_departure(scores)
    >>> found[["name", "after_step", "by_step", "z", "threshold", "familywise"]].round(2)
      name  after_step  by_step    z  threshold  familywise
    0    a          10       20  9.0        2.5        0.33
    1    b          10       20  3.0        2.5        0.33
    >>> found["status"].iloc[0]
    'departed; 2 placebos: no level below 1/3 can be held'
    """
    check_scores(scores)
    if not 0 < level < 1:
        raise TableError(f"level is {level}; it is a probability, above 0 and below 1")
    rows = []
    for (run, branch, to), mine in scores.groupby(["run", "branch", "to"], sort=False):
        rows += [{"run": run, "branch": branch, "to": to} | row for row in _departed(mine, level)]
    return pd.DataFrame(rows).reindex(columns=list(_COLUMNS)).astype(_COLUMNS)


def _departed(rows: pd.DataFrame, level: float) -> list[dict[str, Any]]:
    """Rows of one branch."""
    used, limit = family(rows, level)
    text = ("phase", "name", "module", "param", "state", "against", "statistic")
    blank: dict[str, Any] = dict.fromkeys(text, "")
    if used.empty:
        return [limit | blank | {"status": "nothing to look at: no score after the fork"}]
    size = used["z"].abs()
    out = used[size > limit["threshold"]]
    if out.empty:
        said = f"no departure; {limit['status']}".removesuffix("; ")
        return [limit | blank | {"observed": size.max(), "status": said}]
    clock = "tokens" if used["tokens"].notna().all() else "step"
    first = out[clock].min()
    tied = out[out[clock] == first].assign(size=size)
    tied = tied.sort_values("size", ascending=False, kind="stable")
    when = _interval(rows, used, clock, tied.iloc[0])
    said = f"departed; {limit['status']}".removesuffix("; ")
    found = []
    for _, same in tied.groupby(_TENSOR, dropna=False, sort=False):
        top = same.iloc[0]
        kept = {c: top[c] for c in ("phase", *_TENSOR, "state", "against", "statistic", "z")}
        more = {"observed": top["size"], "outside": len(same), "status": said}
        found.append(limit | when | kept | more)
    return found


def _interval(
    rows: pd.DataFrame, used: pd.DataFrame, clock: str, first: pd.Series
) -> dict[str, Any]:
    """The last checkpoint inside, or the fork where there is none, and the first outside."""
    inside = used[used[clock] < first[clock]]
    if inside.empty:  # scored rows begin here: the fork itself, or where it is said to be
        inside = rows[(rows[clock] < first[clock]).fillna(False)]
        inside = inside[inside["tokens_since"].eq(0).fillna(False)]
    if inside.empty:
        tokens = first["tokens"] - first["tokens_since"]
        last = pd.Series({"step": first.get("fork_step", pd.NA), "tokens": tokens})
    else:
        last = inside.loc[inside[clock].idxmax()]
    return {
        "after_step": last["step"], "after_tokens": last["tokens"], "by_step": first["step"],
        "by_tokens": first["tokens"],
    }  # fmt: skip


def check_scores(scores: pd.DataFrame) -> None:
    """Refuse what `score_branches` did not make."""
    missing = [column for column in _NEED if column not in scores]
    if missing:
        raise TableError(f"not a frame of score_branches: columns {missing} are missing")


def family(rows: pd.DataFrame, level: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Scores that are looked at together, and what is said of their threshold."""
    names = [c for c in rows if str(c).startswith(Z_OF) and rows[c].notna().any()]
    calibrated = bool(names) and rows["label"].eq(CALIBRATED).all()
    need = ["z", *names] if calibrated else ["z"]
    used = rows.dropna(subset=need)
    used = used[~used["tokens_since"].eq(0).fillna(False)]
    said: dict[str, Any] = {
        "tests": len(used), "label": CALIBRATED if calibrated else DESCRIPTIVE,
        "placebos": len(names), "threshold": np.nan, "familywise": np.nan, "status": "",
    }  # fmt: skip
    if used.empty:
        return used, said
    if not calibrated:
        said["threshold"] = sidak(len(used), level)
        said["status"] = "descriptive: no placebos, so no level is held"
        return used, said
    maxima = used[names].abs().to_numpy(dtype=np.float64).max(axis=0)
    said["threshold"], said["familywise"] = rank_threshold(maxima, level)
    if said["familywise"] > level:
        n = len(names)
        plural = "s" if n > 1 else ""
        said["status"] = f"{n} placebo{plural}: no level below 1/{n + 1} can be held"
    return used, said


def rank_threshold(maxima: Sequence[float] | np.ndarray, level: float) -> tuple[float, float]:
    """Limit that one more exchangeable value exceeds with at most `level`, and what it holds.

    Notes
    -----
    The ⌈(n+1)(1−level)⌉-th smallest of n; if that is beyond them, the largest, which holds
    1/(n+1) (Vovk, Gammerman and Shafer 2005, conformal prediction).

    Examples
    --------
    >>> rank_threshold(range(1, 40), 0.05)
    (38.0, 0.05)
    >>> rank_threshold([3.0, 5.0, 4.0], 0.05)
    (5.0, 0.25)
    """
    ordered = np.sort(np.asarray(maxima, dtype=np.float64))
    n = len(ordered)
    place = min(math.ceil(round((n + 1) * (1 - level), 9)), n)
    return float(ordered[place - 1]), (n + 1 - place) / (n + 1)


def sidak(tests: int, level: float) -> float:
    """Limit of the largest of so many independent absolute normal values.

    Examples
    --------
    >>> round(sidak(1, 0.05), 2), round(sidak(1000, 0.05), 2)
    (1.96, 4.05)
    """
    return float(scipy_stats.norm.isf(-math.expm1(math.log1p(-level) / tests) / 2))
