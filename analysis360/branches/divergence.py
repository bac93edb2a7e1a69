"""The geometry of two branches of a run: how far apart, in which direction, how fast.

All of it follows from distances between pairs of checkpoints, which a measured table has: of each
branch from the ancestor, and of one branch from the other. Three sides give a triangle's angles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.branches.compare import check_names, clock_of
from analysis360.errors import TableError
from analysis360.table import check_table

__all__ = ["branch_divergence"]

Values = npt.NDArray[np.float64]

MATCHED = "matched"
NO_PARTNER = "no partner"
OTHER_PARTNER = "partner is another branch"
FORK_EQUAL = "fork: equal"
FORK_DIFFERS = "fork: the branches differ"
NO_ANCESTOR = "ancestor not available"
OTHER_ANCESTOR = "other ancestor"
STILL = "a branch did not move"
NO_DECAY = "matched; decay not known"

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_CHECKPOINT = ["number", "step", "tokens"]
_GEOMETRY = ["relative", "cosine", "along", "across", "moved", "moved_to"]
_UNDECAYED = [f"{name}_undecayed" for name in _GEOMETRY]
_SCHEDULE = ["lr_sum", "lr_sq_sum", "decay"]
_COLUMNS = [
    "run", *_TENSOR, "state", *_CHECKPOINT, "ancestor_step", "tokens_since",
    "distance", "distance_over_norm", *_GEOMETRY, *_UNDECAYED, *_SCHEDULE, "status",
]  # fmt: skip
_LEVELS = {"layer": ["layer"], "module": ["module"], "all": []}
_SQUARES = ["gap", "one", "other", "norm", "gap_free", "one_free", "other_free"]

_SAME = 1e-9
"""Relative difference up to which two norms, summed in different ways, are those of one tensor."""


def branch_divergence(
    table: pd.DataFrame,
    branch: str,
    to: str = "normal",
    *,
    by: str | None = None,
    state: str = "weight",
) -> pd.DataFrame:
    r"""Say how far two branches are apart, and which way they went since their ancestor.

    Parameters
    ----------
    table : DataFrame
        Measured table with ``displacement`` and ``rel_displacement`` (or ``reference_norm``) in the
        rows against the ``"partner"`` and, of both branches, the ``"ancestor"``; with
        ``projection`` and ``decay_between`` there also for the forms without decay, and
        with ``l2_norm`` to see that partners are of these two branches. Any level.
    branch, to : str
        The branch s, and the branch n that it is held against.
    by : {"layer", "module", "all"}, optional
        Sum up a table of tensors to this level. Unlike rows that were merged before, such sums keep
        the decay of each tensor, as matrices are decayed and gains often are not.
    state : str
        Which state; decay is taken off for ``"weight"`` and ``"master"``.

    Returns
    -------
    DataFrame
        One row per tensor (or layer, or all, as the table and `by` have it) and checkpoint of
        `branch`:

        - ``distance`` = :math:`\|\theta_s-\theta_n\|`, ``distance_over_norm`` = that over
          :math:`\|\theta_n\|`;
        - ``moved``, ``moved_to`` = :math:`\|\Delta_s\|,\|\Delta_n\|` with
          :math:`\Delta_b=\theta_b-\theta_0` from the ancestor;
        - ``relative`` = D = distance over :math:`\|\Delta_n\|`; ``cosine`` of
          :math:`\Delta_s,\Delta_n`; ``along`` = a and ``across`` = :math:`\|\Delta_\perp\|/
          \|\Delta_n\|` of :math:`\Delta_s=a\Delta_n+\Delta_\perp`;
        - the same with ``_undecayed``, of :math:`\Delta'_b=\theta_b-\Pi\theta_0`, where
          :math:`\Pi=\prod_t(1-\eta_t\lambda)`: what is left when weight decay is taken off;
        - ``lr_sum``, ``lr_sq_sum``, ``decay``: :math:`\sum\eta,\sum\eta^2,\Pi` since the ancestor
          (where tensors were summed up, the mean of :math:`\Pi` weighted by squared distance);
        - ``ancestor_step``, and ``tokens_since`` it where its tokens are in the table;
        - ``status``: ``"matched"``, or what is missing. ``"fork: equal"`` or ``"fork: the branches
          differ"`` where the checkpoint is the ancestor itself, in both branches.

    Raises
    ------
    TableError
        If a column or branch is missing, no row of `branch` has the state, or a level is unknown.

    Notes
    -----
    Undefined (NaN): all but the distances without an ancestor; ratios where :math:`\Delta_n` is
    zero; angles also where :math:`\Delta_s` is; the undecayed forms where the schedule, the decay
    or the projection on the ancestor is not known, or differs within a merged row.

    *What it reads by chance.* Two independent walks of equal length give cosine 0 and relative
    :math:`\sqrt2` without decay; with it both displacements share :math:`-(1-\Pi)\theta_0`, so only
    the undecayed forms do so (derived, simulated). Branches that see the same data but for one
    chunk are not independent: these numbers are an end of the scale, not a null. Hold a second
    undisturbed branch against `to`. One pair is one sample, however many checkpoints it has.

    An ancestor that is earlier than the fork makes the shared path part of both displacements, and
    raises cosine and lowers D: two walks that shared the part f of :math:`\sum\eta^2` have
    cosine f.

    No digits are lost where branches are close: angles come from the three sides by Kahan's form of
    Heron's formula, not from differences of squares.

    Examples
    --------
    >>> rows = []
    >>> for b, role, far in (("s", "partner", 5.0), ("s", "ancestor", 4.0), ("n", "ancestor", 3.0)):
    ...     rows.append({"run": "r", "branch": b, "number": 2, "step": 20, "tokens": 200,
    ...         "name": "w", "layer": 0, "module": "mlp.up", "param": "weight", "expert": None,
    ...         "head": None, "state": "weight", "against": role, "displacement": far,
    ...         "rel_displacement": far / 50})
    >>> apart = branch_divergence(pd.DataFrame(rows), "s", to="n")
    >>> apart[["distance", "relative", "cosine", "along", "across"]].round(3).values.tolist()
    [[5.0, 1.667, 0.0, 0.0, 1.333]]
    >>> apart["status"].item()
    'matched; decay not known'
    """
    table = check_table(table, ["displacement"])
    if branch == to:
        raise TableError(f"branch and to are both {branch!r}; compare two branches")
    if by is not None and by not in _LEVELS:
        raise TableError(f"unknown level {by!r}; allowed: {', '.join(_LEVELS)}")
    check_names(table, branch, to)
    rows = table[table["state"] == state]
    pieces = []
    for run, mine in rows.groupby("run", sort=False):
        if (mine["branch"] == branch).any():
            wide = _wide(mine, branch, to, str(run))
            wide["run"], wide["state"] = str(run), state
            pieces.append(_squares(wide, decayed=state in ("weight", "master")))
    if not pieces:
        states = list(pd.unique(table["state"]))
        raise TableError(f"branch {branch!r} has no rows of state {state!r}; states are {states}")
    wide = pd.concat(pieces, ignore_index=True)
    return _said(wide if by is None else _summed(wide, _LEVELS[by]))


def _wide(rows: pd.DataFrame, branch: str, to: str, run: str) -> pd.DataFrame:
    """Each tensor and checkpoint of `branch`, with the rows of both branches that matter beside."""
    mine, other = rows[rows["branch"] == branch], rows[rows["branch"] == to]
    clock = clock_of(mine, other, run)
    base = mine[[*_TENSOR, *_CHECKPOINT]].drop_duplicates().reset_index(drop=True)
    for tag, part in (("one", mine), ("other", other)):
        base = _beside(base, part, "ancestor", clock, f"{tag}_")
        base = _beside(base, part, "partner", clock, f"{tag}_partner_")
        base = _beside(base, part, "", clock, f"{tag}_alone_")
    tokens = rows.dropna(subset=["step", "tokens"]).drop_duplicates("step").set_index("step")
    ancestor = base["one_step"].fillna(base["other_step"]).astype("Int64")
    base["ancestor_step"] = ancestor
    forks = set(ancestor.dropna())  # of later checkpoints: this may be the one that they left
    base["at_fork"] = base["step"].isin(forks) & base["step"].notna()
    since = base["tokens"] - ancestor.map(tokens["tokens"]).astype("Int64")
    base["tokens_since"] = since.astype("Int64")
    return base


def _beside(
    base: pd.DataFrame, rows: pd.DataFrame, against: str, clock: str, tag: str
) -> pd.DataFrame:
    """Columns of the rows against something, under names that say whose they are."""
    rows = rows[(rows["against"] == against) & rows[clock].notna()]
    found = rows[[*_TENSOR, clock]].copy()
    found[f"{tag}there"] = True
    found[f"{tag}step"] = _column(rows, "reference_step").astype("Int64")
    found[f"{tag}far"] = _column(rows, "displacement")
    found[f"{tag}norm"] = _reference_norm(rows)
    found[f"{tag}own"] = _column(rows, "l2_norm")
    for name, column in (
        ("projection", "projection"), ("decay", "decay_between"),
        ("lr_sum", "lr_between"), ("lr_sq_sum", "lr_sq_between"),
    ):  # fmt: skip
        found[f"{tag}{name}"] = _column(rows, column)
    base = base.merge(found, on=[*_TENSOR, clock], how="left")
    base[f"{tag}there"] = base[f"{tag}there"].eq(True).fillna(False)
    return base


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    if name not in rows:
        return pd.Series(np.nan, rows.index, dtype="float64")
    return rows[name].astype("Float64").astype("float64")


def _reference_norm(rows: pd.DataFrame) -> pd.Series:
    """Norm of what a row is compared with; where nothing moved, a ratio does not tell it."""
    known = _column(rows, "reference_norm")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = _column(rows, "displacement") / _column(rows, "rel_displacement")
    return known.fillna(ratio.where(np.isfinite(ratio)))


def _same(one: pd.Series, other: pd.Series) -> pd.Series:
    """Whether two norms are those of one tensor; yes where one is not known."""
    known = one.notna() & other.notna()
    return ~known | ((one - other).abs() <= _SAME * np.maximum(one.abs(), other.abs()))


def _squares(wide: pd.DataFrame, *, decayed: bool) -> pd.DataFrame:
    """Squared sides of the triangle with and without decay, which add up over tensors."""
    wide = wide.copy()
    partner = wide["one_partner_there"] & _same(wide["one_partner_norm"], wide["other_alone_own"])
    turned = wide["other_partner_there"] & _same(wide["other_partner_norm"], wide["one_alone_own"])
    gap = wide["one_partner_far"].where(partner, wide["other_partner_far"].where(turned))
    there = wide["one_there"] & wide["other_there"]
    steps = wide["one_step"] != wide["other_step"]
    unlike = steps.fillna(False).astype(bool) | ~_same(wide["one_norm"], wide["other_norm"])
    one, other = wide["one_far"].where(there & ~unlike), wide["other_far"].where(there & ~unlike)
    start = wide["one_norm"].fillna(wide["other_norm"]) ** 2
    lost, lost_to = 1 - wide["one_decay"], 1 - wide["other_decay"]
    if not decayed:
        lost, lost_to = lost * np.nan, lost_to * np.nan
    # nothing is lost of a tensor that began at zero, and nothing lies along it
    p, p_to = (wide[f"{b}_projection"].where(start != 0, 0.0) for b in ("one", "other"))
    apart = lost - lost_to
    wide["gap"], wide["one"], wide["other"] = gap**2, one**2, other**2
    wide["norm"] = wide["other_alone_own"].fillna(wide["one_partner_norm"].where(partner)) ** 2
    wide["one_free"] = (one**2 + lost * start * (2 * p + lost)).clip(lower=0)
    wide["other_free"] = (other**2 + lost_to * start * (2 * p_to + lost_to)).clip(lower=0)
    # zero where both branches ran at one schedule
    more = apart * start * (2 * (p - p_to) + apart)
    wide["gap_free"] = (gap**2 + more).clip(lower=0)
    for name in _SCHEDULE:
        wide[name] = wide[f"one_{name}"]
    wide["status"] = np.select(
        [
            gap.isna() & (wide["one_partner_there"] | wide["other_partner_there"]),
            gap.isna(),
            wide["at_fork"] & (gap == 0),
            wide["at_fork"],
            ~there,
            unlike,
            (one == 0) | (other == 0),
            wide[["one_free", "other_free", "gap_free"]].isna().any(axis=1) & decayed,
        ],
        [OTHER_PARTNER, NO_PARTNER, FORK_EQUAL, FORK_DIFFERS, NO_ANCESTOR, OTHER_ANCESTOR, STILL,
         NO_DECAY],
        MATCHED,
    )  # fmt: skip
    return wide


def _summed(wide: pd.DataFrame, level: list[str]) -> pd.DataFrame:
    """Squares added up over the tensors of a level; missing where one of them is."""
    if wide.groupby(["run", *_CHECKPOINT], dropna=False).size().max() == 1:
        raise TableError("every checkpoint has one row already; sum up a table of tensors")
    keys = ["run", "state", *_CHECKPOINT, *level]
    wide = wide.assign(weighted=wide["gap"] * wide["decay"])
    groups = wide.groupby(keys, dropna=False, sort=False)
    whole: Callable[[pd.Series], float] = lambda x: x.sum(skipna=False)  # noqa: E731
    found = groups[[*_SQUARES, "weighted"]].agg(whole)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["decay"] = found["weighted"] / found["gap"]
    first = groups[["lr_sum", "lr_sq_sum", "ancestor_step", "tokens_since"]].first()
    found[first.columns] = first
    found["status"] = groups["status"].agg(_worst)
    found = found.reset_index()
    for column in set(_TENSOR) - set(level):
        found[column] = pd.NA if column in ("layer", "expert", "head") else ""
    return found


def _worst(statuses: pd.Series) -> str:
    """One status for several tensors: what is amiss in any, each thing once."""
    there = list(dict.fromkeys(map(str, statuses)))
    # one that is frozen adds nothing to the sums, and does not spoil them
    amiss = [s for s in there if s not in (MATCHED, STILL)] or there[:1]
    return MATCHED if MATCHED in there and amiss == there[:1] == [STILL] else "; ".join(amiss)


def _said(wide: pd.DataFrame) -> pd.DataFrame:
    """Squares → the columns that are promised."""
    root = {name: np.sqrt(wide[name].to_numpy(dtype=np.float64)) for name in _SQUARES}
    wide = wide.drop(columns=_SQUARES)
    with np.errstate(invalid="ignore", divide="ignore"):
        wide["distance"] = root["gap"]
        wide["distance_over_norm"] = _ratio(root["gap"], root["norm"])
        for end in ("", "_free"):
            gap, one, other = (root[f"{side}{end}"] for side in ("gap", "one", "other"))
            values = (_ratio(gap, other), *_triangle(one, other, gap), one, other)
            for name, value in zip(_GEOMETRY if not end else _UNDECAYED, values):
                wide[name] = value
    whole = dict.fromkeys(("layer", "expert", "head", "ancestor_step", "tokens_since"), "Int64")
    return wide[_COLUMNS].astype(whole | {"status": "str", "run": "str", "state": "str"})


def _ratio(one: Values, other: Values) -> Values:
    return np.where(other > 0, one / other, np.nan)


def _triangle(one: Values, other: Values, gap: Values) -> tuple[Values, Values, Values]:
    """Cosine of the angle between two sides, and `one` along and across `other`, in its lengths.

    The third side is `gap`. Twice the area is the height times `other`.
    """
    cosine = 1 - (gap - (one - other)) * (gap + (one - other)) / (2 * one * other)
    cosine = np.where((one > 0) & (other > 0), np.clip(cosine, -1.0, 1.0), np.nan)
    small, middle, large = np.sort(np.stack([one, other, gap]), axis=0)
    sixteen = (
        (large + (middle + small))
        * (small - (large - middle))
        * (small + (large - middle))
        * (large + (middle - small))
    )
    across = np.sqrt(np.maximum(sixteen, 0.0)) / 2 / other**2
    return cosine, _ratio(cosine * one, other), np.where(other > 0, across, np.nan)
