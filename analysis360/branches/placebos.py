"""How unusual a branch is among undisturbed branches of the same ancestor.

A *placebo* is a branch that left the same checkpoint and had nothing done to it but another order
of data. How far placebos come apart, in each tensor and statistic and as time goes on, is what a
difference has to be held against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis360.branches.compare import MATCHED, check_names, compare_branches
from analysis360.branches.scatter import FEWEST, SAME, SERIES, Grid, score
from analysis360.errors import TableError
from analysis360.table import check_table, statistic_columns

__all__ = ["Z_OF", "score_branches"]

Values = npt.NDArray[np.float64]

Z_OF = "z of "
"""What the columns with the scores of the placebos begin with."""

CALIBRATED, DESCRIPTIVE = "calibrated", "descriptive"
NO_SCATTER = "equal in all branches"
AT_FORK = "not after the fork"

_TENSOR = ["name", "layer", "module", "param", "expert", "head"]
_ROW = [*_TENSOR, "state", "against"]
_CHECKPOINT = ["number", "step", "tokens"]
_COLUMNS = [
    "run", *_ROW, *_CHECKPOINT, "tokens_since", "phase", "statistic", "value", "reference",
    "effect", "effect_kind", "scatter", "z", "placebos", "label", "status", "branch", "to",
    "fork_step",
]  # fmt: skip


def score_branches(
    table: pd.DataFrame,
    branch: str,
    to: str = "normal",
    *,
    placebos: Sequence[str] | None = None,
    statistics: Sequence[str] | None = None,
    spikes: pd.DataFrame | None = None,
    onset: int | None = None,
) -> pd.DataFrame:
    r"""Score how far a branch is from undisturbed ones, against how far these are from each other.

    Parameters
    ----------
    table : DataFrame
        Measured table of all these branches, whole or aggregated.
    branch, to : str
        The branch, and the undisturbed one that effects are taken against.
    placebos : sequence of str, optional
        Further undisturbed branches of the same ancestor. Without any, scores are descriptive.
    statistics : sequence of str, optional
        Which statistics; by default all of the table. Choose them before you look: each one more
        raises what the largest score is by chance.
    spikes : DataFrame, optional
        SPIKES frame. The onset is that of the first sustained event of `branch` after the fork,
        or of its first event where none was sustained.
    onset : int, optional
        Step of the onset, instead.

    Returns
    -------
    DataFrame
        SCORES frame, long: one row per row of `branch` in the table and statistic: ``run``, the
        tensor (``name, layer, module, param, expert, head``), ``state, against``, the checkpoint
        (``number, step, tokens``), ``tokens_since`` the fork, and

        - ``phase``: ``"before"`` the onset; ``"onset"``, the first checkpoint at or after it, so
          that what it shows came before or after the onset, nobody can tell; ``"after"``; empty
          without an onset;
        - ``statistic``, ``value``, ``reference`` (of `to`); ``effect`` of ``effect_kind``
          ``"log2"`` = log2(value / reference) where the statistic of this tensor is positive
          in all branches at all checkpoints, else ``"difference"``;
        - ``scatter``: standard deviation of the effect between `to` and the placebos (see Notes);
          ``z``; ``placebos``, how many were there;
        - ``label``: ``"calibrated"``, or ``"descriptive"`` without placebos; ``status``;
        - ``branch``, ``to``, ``fork_step``, where that checkpoint is known, and for each placebo
          ``"z of <name>"``, its own score when it takes
          the place of `branch`.

    Raises
    ------
    TableError
        As `compare_branches`; also if a placebo is `branch` or `to`, or named twice.

    Notes
    -----
    *z.* Each of `branch` and the placebos is held against all the others and `to`, m = n + 1 of
    them: :math:`t=(e-\bar e)/(s\sqrt{1+1/m})`, the prediction of one more value from m (textbook),
    turned into the normal value of the same tail probability under Student's t. Several statistics
    have heavy tails or are bounded, so z is a common scale and not a p-value: how large it is by
    chance is read off the placebos by `first_departure`. When a placebo is scored, `branch` is one
    of the others. So all n + 1 are treated alike, and if `branch` is but one more placebo, each is
    the largest with probability 1/(n + 1), whatever their distribution (exchangeability).

    *Scatter.* Variance between the m at each checkpoint; ratios borrow from tensors of the same
    module (their mean counts as 2 more degrees of freedom, if there are 3 or more); then made
    non-decreasing in tokens since the fork by isotonic regression, as branches drift apart. Where
    all the others are equal and this one differs, 2^-8 (of the largest value, if it is a
    difference) stands in for it: largest magnitudes of sixteen-bit weights stay equal, and then
    differ by one such place. `z` is NaN where all are equal, and at or before the fork. `scatter`
    is that for `branch`.

    *Without placebos* z is the effect's distance from the median over tensors of that module and
    checkpoint, over 1.4826 times their median absolute deviation: which tensors stand out among
    their like. It says nothing about what an undisturbed branch would do; ``scatter`` is NaN.

    A placebo whose fork, as `compare_branches` finds it, is another one is left out; so is one that
    saw the data of `to` up to the first checkpoint, as it looks like one that left there.

    Examples
    --------
    >>> import analysis360 as a360
    >>> values = {"s": 9.0, "n": 4.0, "p1": 4.2, "p2": 3.9, "p3": 4.1}
    >>> table = pd.DataFrame([{"run": "r", "branch": b, "number": k, "step": k, "tokens": k,
    ...     "name": "w", "layer": 0, "module": "mlp.up", "param": "weight", "expert": None,
    ...     "head": None, "state": "weight", "against": "", "l2_norm": v if k else 3.0}
    ...     for b, v in values.items() for k in (0, 1)])
    >>> scores = a360.score_branches(table, "s", "n", placebos=["p1", "p2", "p3"])
    >>> scores[["step", "effect", "scatter", "z", "label"]].round(3)
       step  effect  scatter      z       label
    0     0    0.00      NaN    NaN  calibrated
    1     1    1.17    0.046  3.726  calibrated
    """
    named = list(placebos or ())
    if len({*named, branch, to}) < len(named) + 2:
        raise TableError(f"placebos {named} repeat each other, branch {branch!r} or to {to!r}")
    for name in named:
        check_names(table, name, to)
    apart = compare_branches(table, branch, to, statistics=statistics)
    apart = apart[[*SERIES, *_CHECKPOINT, "tokens_since", "value", "reference", "status"]]
    table = check_table(table)
    # all that was measured tells where they parted, also if little of it is asked for
    forks = _forks(table, [branch, *named], to)
    own = apart["run"].map({r: tokens for (r, b), tokens in forks.items() if b == branch})
    since = apart["tokens"] - own.astype("Int64")
    apart["tokens_since"] = since.where(since.ge(0).fillna(False))
    apart, held = _with_placebos(apart, table, branch, named, forks)
    pieces = []
    for run, rows in apart.groupby("run", sort=False):
        rows = _effects(rows.reset_index(drop=True), held)
        there = [name for name in held if rows[f"value of {name}"].notna().any()]
        rows = _calibrated(rows, there) if there else _descriptive(rows)
        start = _onset(spikes, branch, str(run), rows) if onset is None else onset
        rows["phase"] = _phase(rows["step"], start)
        rows["placebos"] = rows[[f"value of {name}" for name in there]].notna().sum(axis=1)
        rows["fork_step"] = _fork_step(rows, table[table["run"] == run])
        pieces.append(rows)
    out = pd.concat(pieces, ignore_index=True).assign(branch=branch, to=to)
    text = dict.fromkeys(("phase", "label", "status", "effect_kind", "branch", "to"), "str")
    return out.reindex(columns=[*_COLUMNS, *(Z_OF + n for n in named)]).astype(
        text | {"placebos": "Int64", "fork_step": "Int64"}
    )


def _with_placebos(
    apart: pd.DataFrame,
    table: pd.DataFrame,
    branch: str,
    named: Sequence[str],
    forks: dict[tuple[str, str], int],
) -> tuple[pd.DataFrame, list[str]]:
    """Values of the placebos beside those of the branch, where their fork is the same."""
    clock = "tokens" if apart["tokens"].notna().all() else "step"
    statistics = list(dict.fromkeys(apart["statistic"]))
    cell = ["run", *_ROW, clock]
    points = apart[cell].dropna(subset=[clock]).drop_duplicates()
    points = points.assign(cell=np.arange(len(points)))
    at = apart.merge(points, on=cell, how="left")["cell"].fillna(-1).to_numpy(dtype=np.int64)
    which = pd.Index(statistics).get_indexer(apart["statistic"])
    alone = table[table["against"].ne("partner") & table["branch"].isin([branch, *named])]
    reference = [c for c in ("reference_step",) if c in alone]
    found = alone[["branch", *cell, *reference, *statistics]].merge(points, on=cell)
    mine = found[found["branch"] == branch].set_index("cell")
    for name in named:
        rows = found[found["branch"] == name].set_index("cell")
        if reference:  # measured against a checkpoint of another step
            theirs, ours = (x["reference_step"].reindex(rows.index) for x in (rows, mine))
            rows = rows[~theirs.ne(ours).fillna(False)]
        off = [
            r for r, b in forks if b == name and forks.get((r, branch)) not in (None, forks[r, b])
        ]
        rows = rows[~rows["run"].isin(off)]
        values = np.full((len(points) + 1, len(statistics)), np.nan)  # the last for cell -1
        values[rows.index] = rows[statistics].to_numpy(dtype=np.float64, na_value=np.nan)
        apart[f"value of {name}"] = values[at, which]
    return apart, [name for name in named if apart[f"value of {name}"].notna().any()]


def _forks(table: pd.DataFrame, names: Sequence[str], to: str) -> dict[tuple[str, str], int]:
    """Tokens at which each branch left `to`, by run and branch, as `compare_branches` finds them.

    A checkpoint of one branch is that of another if the sums over its rows of a hash are equal.
    """
    alone = table[(table["against"] == "") & table["tokens"].notna()]
    cell = alone.groupby(_ROW, dropna=False, sort=False).ngroup()
    values = alone[statistic_columns(alone)].select_dtypes("number").astype("float64")
    said = pd.util.hash_pandas_object(values.assign(cell=cell), index=False)
    keys = [alone["run"], alone["branch"], alone["tokens"].astype("int64")]
    points = said.groupby(keys).sum()
    found = {}
    for run in pd.unique(alone["run"]):
        mine = points.loc[run]
        theirs = mine.loc[to] if to in mine.index else pd.Series(dtype="uint64")
        for name in (n for n in names if n in mine.index):
            own = mine.loc[name]
            both = own.index.intersection(theirs.index).sort_values()
            same = own.loc[both].to_numpy() == theirs.loc[both].to_numpy()
            leading = both[np.logical_and.accumulate(same)]
            begin = max(own.index.min(), theirs.index.min()) if len(theirs) else 0
            pair = own.index.union(theirs.index)
            whole = mine.index.get_level_values(1)
            for part in (leading, pair[pair < begin], whole[whole < begin]):
                if len(part):
                    found[str(run), name] = int(part.max())
                    break
    return found


def _effects(rows: pd.DataFrame, held: Sequence[str]) -> pd.DataFrame:
    """Effects of the branch and the placebos against `to`, in one unit for each series."""
    columns = ["value", "reference", *(f"value of {name}" for name in held)]
    values = rows[columns].to_numpy(dtype=np.float64)
    keys = [rows[column] for column in SERIES]
    positive = pd.Series(((values > 0) | np.isnan(values)).all(axis=1), rows.index)
    log = positive.groupby(keys, dropna=False).transform("all").to_numpy(dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.log2(values) - np.log2(values[:, [1]])
        effects = np.where(log[:, None], ratios, values - values[:, [1]])
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    rounding = SAME * np.where(log, 1.0, finite.max(axis=1, initial=0.0))
    effects[np.abs(effects) <= rounding[:, None]] = 0.0
    rows = rows.assign(
        effect=effects[:, 0], effect_kind=np.where(log, "log2", "difference"), rounding=rounding
    )
    for i, name in enumerate(held, start=2):
        rows[f"effect of {name}"] = effects[:, i]
    return rows


def _calibrated(rows: pd.DataFrame, there: Sequence[str]) -> pd.DataFrame:
    """Scores of the branch and of each placebo among the others and `to`."""
    mine = [rows["effect"], *(rows[f"effect of {name}"] for name in there)]
    effects = np.stack([np.zeros(len(rows)), *(e.to_numpy(dtype=np.float64) for e in mine)], axis=1)
    effects[~np.isfinite(effects[:, 1]), 0] = np.nan
    after = ~rows["tokens_since"].eq(0).fillna(False).to_numpy(dtype=bool)
    known = rows["tokens_since"].notna().any()
    after &= ~(known & rows["tokens_since"].isna().to_numpy(dtype=bool))
    effects[~after] = np.nan
    grid = Grid(rows)
    rounding = rows["rounding"].to_numpy(dtype=np.float64)
    scores, scatters = [], []
    for i in range(1, effects.shape[1]):
        z, scatter = score(effects[:, i], np.delete(effects, i, axis=1), rounding, grid)
        scores.append(z)
        scatters.append(scatter)
    rows = rows.assign(z=scores[0], scatter=scatters[0], label=CALIBRATED)
    for name, z in zip(there, scores[1:]):
        rows[Z_OF + name] = z
    said = np.where(rows["z"].isna(), NO_SCATTER, MATCHED)
    said = np.where(np.isnan(effects[:, 2:]).any(axis=1), "not defined in every placebo", said)
    said = np.where(np.isnan(effects[:, 1]), "not defined", said)
    said = np.where(after, said, AT_FORK)
    rows["status"] = rows["status"].where(rows["status"].ne(MATCHED), said)
    return rows


def _descriptive(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores among the tensors of a module at one checkpoint: what stands out from its like."""
    like = ["module", "param", "state", "against", "statistic", "effect_kind", *_CHECKPOINT]
    effect = rows["effect"].where(np.isfinite(rows["effect"]))
    keys = [rows[column] for column in like]

    centre = effect.groupby(keys, dropna=False).transform("median")
    off = effect - centre
    scale = 1.4826 * off.abs().groupby(keys, dropna=False).transform("median")
    enough = effect.groupby(keys, dropna=False).transform("count") >= FEWEST
    z = (off / scale).where(enough & (scale > rows["rounding"]))
    said = np.where(z.notna(), MATCHED, f"fewer than {FEWEST} tensors of this module, or equal")
    status = rows["status"].where(rows["status"].ne(MATCHED), said)
    return rows.assign(z=z, scatter=np.nan, label=DESCRIPTIVE, status=status)


def _onset(spikes: pd.DataFrame | None, branch: str, run: str, rows: pd.DataFrame) -> int | None:
    """Step of the first sustained event of the branch after the fork, else of its first event."""
    if spikes is None or spikes.empty:
        return None
    mine = spikes[spikes["branch"].eq(branch)]
    if "run" in mine:
        mine = mine[mine["run"].eq(run)]
    forks = rows.loc[rows["tokens_since"].eq(0).fillna(False), "step"].dropna()
    if len(forks):
        mine = mine[mine["onset"] > forks.iloc[0]]
    if "channel" in mine and mine["channel"].eq("sustained").any():
        mine = mine[mine["channel"].eq("sustained")]
    return int(mine["onset"].min()) if len(mine) else None


def _fork_step(rows: pd.DataFrame, table: pd.DataFrame) -> int | None:
    """Step of the checkpoint from which tokens since the fork are counted."""
    since = rows.dropna(subset=["tokens", "tokens_since"])
    if since.empty:
        return None
    fork = since["tokens"].iloc[0] - since["tokens_since"].iloc[0]
    steps = table.loc[table["tokens"].eq(fork).fillna(False), "step"].dropna()
    return int(steps.iloc[0]) if len(steps) else None


def _phase(step: pd.Series, onset: int | None) -> Sequence[str]:
    """Where each checkpoint lies: before the onset, the first at or after it, or later."""
    if onset is None:
        return [""] * len(step)
    at = step.to_numpy(dtype=np.float64, na_value=np.nan)
    later = at[at >= onset]
    first = later.min() if len(later) else np.inf
    phase = np.select([np.isnan(at), at < onset, at == first], ["", "before", "onset"], "after")
    return [str(word) for word in phase]
