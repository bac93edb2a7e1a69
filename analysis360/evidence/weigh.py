"""All mechanisms weighed on one branch, and the matrix of what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from analysis360.branches import check_names
from analysis360.errors import TableError
from analysis360.evidence import damage, data, optimizer, weights
from analysis360.evidence.case import Case, plain
from analysis360.evidence.pieces import (
    AGAINST,
    FOR,
    INCONCLUSIVE,
    MECHANISMS,
    UNTESTABLE,
    Mechanism,
)
from analysis360.spikes import find_spikes
from analysis360.table import check_table

__all__ = ["EVIDENCE_STATISTICS", "evidence_matrix", "weigh_evidence"]

_REGISTER = (optimizer, weights, data, damage)  # imported so that they are

EVIDENCE_STATISTICS = (
    "spectral_norm", "stable_rank", "update_large_fraction", "update_kurtosis",
    "effective_lr_p99", "v_row_top_share", "mean_row_norm", "centred_row_norm", "qk_logit_rms",
    "moment_nonfinite",
)  # fmt: skip
"""Statistics that pieces rest on, beyond those that are measured when none are named."""

COLUMNS = {
    "mechanism": "str", "name": "str", "direction": "str", "evidence": "str", "statistic": "str",
    "value": "float64", "limit": "float64", "unit": "str", "where": "str", "step": "Int64",
    "n": "int64", "why": "str", "source": "str", "needs": "str", "role": "str",
}  # fmt: skip
DIRECTIONS = (FOR, AGAINST, UNTESTABLE, INCONCLUSIVE)


def weigh_evidence(
    table: pd.DataFrame,
    branch: str,
    to: str = "normal",
    *,
    placebos: Sequence[str] = (),
    loss: pd.DataFrame | None = None,
    spikes: pd.DataFrame | None = None,
    vectors: pd.DataFrame | None = None,
    run: str | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
) -> pd.DataFrame:
    r"""Say what in a branch fits each of ten mechanisms of loss spikes, and what does not.

    Parameters
    ----------
    table : DataFrame
        Measured table, per tensor; compared with ``"previous"``, ``"partner"`` and ``"ancestor"``
        for all pieces. What is not in it makes pieces untestable. `EVIDENCE_STATISTICS` are what
        to measure beyond the default; ``plan(..., per_head=True)`` for logits of heads.
    branch, to : str
        The branch, and the one that it is held against.
    placebos : sequence of str
        Branches of the table that left `to` where `branch` did and differ from it only in the order
        of ordinary data. Limits come from them.
    loss : DataFrame, optional
        LOSS frame: its learning rates, and, without `spikes`, the spikes in it.
    spikes : DataFrame, optional
        SPIKES frame of both branches, from `find_spikes`.
    vectors : DataFrame, optional
        From ``load_table(path, kind="vectors")``: with ``row_v_sum``, rows of the embedding are
        looked at one by one.
    run : str, optional
        Which run, if the table has several.
    betas : tuple of float
        Adam's: how long its moments remember, and how far a step can go.

    Returns
    -------
    DataFrame
        EVIDENCE frame, one row per mechanism and piece: ``mechanism`` ("M1" to "M10"), ``name``,
        ``direction`` (``"for"``, ``"against"``, ``"untestable"`` or ``"inconclusive"``),
        ``evidence`` (a sentence with its number), ``statistic``, ``value`` and ``limit`` in
        ``unit``, ``where`` (tensor), ``step``, ``n`` (numbers of which this is the extreme),
        ``why`` (it is untestable), ``source`` (of the limit), ``needs``, and ``role``:
        ``"key"`` pieces must all fit, a ``"decisive"`` one says it alone, ``"supporting"`` ones
        do not count in the verdict.

    Raises
    ------
    TableError
        If the frame is no measured table, a branch is not in it, or it has several runs and none
        is named.

    Notes
    -----
    *What is looked at.* With a lasting spike, checkpoints up to the first at or after its onset:
    later differences are most often its consequences. Without one, all. Where `to` has a spike of
    its own, nothing from there on.

    *Limits.* Of k placebos: (1 + 1/k) times the largest effect among them, any tensor, up to that
    checkpoint. Without placebos: twice the largest move of `to` between its own checkpoints, which
    is weaker; with fewer than 3 such moves, none. Neither is less than a floor that the piece has
    (×1.07, as a rule). Above the limit a piece is for, below half of it against. These are
    conventions; what they find of planted faults is in docs/evidence.md. Other limits are closed
    forms or definitions, and say so.

    *What it is not.* Several mechanisms can fit, and what fits need not have been at work. One
    branch is one sample.

    Examples
    --------
    >>> table = pd.DataFrame({"run": "r", "branch": ["s", "n"], "number": 1, "step": 10,
    ...     "tokens": 100, "name": "w", "layer": 0, "module": "mlp.up", "param": "weight",
    ...     "expert": None, "head": None, "state": "weight", "against": "",
    ...     "nonfinite": [2.0, 0.0]})
    >>> found = weigh_evidence(table, "s", to="n")
    >>> found.loc[found["direction"] == "for", ["mechanism", "evidence"]].values.tolist()
    [['M10', 'nonfinite: 2 elements in 1 rows (limit 0)']]
    >>> found.loc[found["mechanism"] == "M5", "why"].iloc[0]
    'no optimizer moments in the table'
    """
    case = _case(table, branch, to, placebos, loss, spikes, vectors, run, betas)
    rows = []
    for made in _ordered():
        for piece in made.weigh(case):
            said = asdict(piece)
            rows.append({"mechanism": made.code, "name": made.name} | said)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _ordered() -> list[Mechanism]:
    return sorted(MECHANISMS.values(), key=lambda made: (len(made.code), made.code))


def _case(
    table: pd.DataFrame,
    branch: str,
    to: str,
    placebos: Sequence[str],
    loss: pd.DataFrame | None,
    spikes: pd.DataFrame | None,
    vectors: pd.DataFrame | None,
    run: str | None,
    betas: tuple[float, float],
) -> Case:
    table = check_table(table)
    runs = list(pd.unique(table["run"]))
    if run is None and len(runs) > 1:
        raise TableError(f"the table has the runs {runs}; say which by run=")
    if run is not None:
        if run not in runs:
            raise TableError(f"no run {run!r} in the table; it has {runs}")
        table = table[table["run"] == run]
    if isinstance(placebos, str):
        raise TableError(f"placebos is the text {placebos!r}; give a sequence of branches")
    same = {branch, to} & set(placebos)
    if branch == to or same:
        raise TableError(f"branch {branch!r}, to {to!r} and placebos {list(placebos)} must differ")
    check_names(table, branch, to)
    for name in placebos:
        check_names(table, name, to)
    if spikes is None and loss is not None:
        spikes = find_spikes(loss)
    if vectors is not None and "run" in vectors:
        vectors = vectors[vectors["run"] == table["run"].iloc[0]]
    return Case(plain(table), branch, to, tuple(placebos), loss, spikes, vectors, betas)


def evidence_matrix(evidence: pd.DataFrame) -> pd.DataFrame:
    """One row per mechanism: what is for it, against it, and cannot be told.

    Parameters
    ----------
    evidence : DataFrame
        EVIDENCE frame, from `weigh_evidence`.

    Returns
    -------
    DataFrame
        ``mechanism, name``; ``for``, ``against``, ``untestable``, ``inconclusive``: the pieces,
        each with its number, separated by ``"; "``, empty where there are none; and ``verdict``:
        ``"for"`` where a decisive piece is for, or no key piece is against, one at least is for,
        and none is inconclusive; ``"against"`` where a decisive or key piece is against and no
        decisive one is for; ``"untestable"`` where no decisive or key piece could be had; else
        ``"inconclusive"``. A key piece that is untestable keeps "for" from being said, as the
        others alone fit other mechanisms too.

    Raises
    ------
    TableError
        If columns of an EVIDENCE frame are missing.

    Examples
    --------
    >>> evidence = pd.DataFrame({"mechanism": "M3", "name": "attention logits grow",
    ...     "direction": ["for", "for"], "evidence": ["logits ×9", "beyond others ×3"],
    ...     "statistic": "", "why": "", "role": "key"})
    >>> evidence_matrix(evidence)[["mechanism", "for", "verdict"]].values.tolist()
    [['M3', 'logits ×9; beyond others ×3', 'for']]
    """
    need = ["mechanism", "name", "direction", "evidence", "statistic", "why", "role"]
    missing = [column for column in need if column not in evidence]
    if missing:
        raise TableError(f"not a frame of weigh_evidence: columns {missing} are missing")
    rows = []
    for (code, name), mine in evidence.groupby(["mechanism", "name"], sort=False):
        cells = {d: "; ".join(_cell(row) for _, row in mine.iterrows() if row["direction"] == d)
                 for d in DIRECTIONS}  # fmt: skip
        rows.append({"mechanism": code, "name": name} | cells | {"verdict": _verdict(mine)})
    columns = ["mechanism", "name", *DIRECTIONS, "verdict"]
    return pd.DataFrame(rows, columns=columns).astype("str")


def _cell(row: pd.Series) -> str:
    if row["direction"] != UNTESTABLE:
        return str(row["evidence"])
    return f"{row['statistic']}: {row['why']}" if row["statistic"] else str(row["why"])


def _verdict(rows: pd.DataFrame) -> str:
    """See `evidence_matrix`."""
    decisive = rows.loc[rows["role"] == "decisive", "direction"].tolist()
    key = rows.loc[rows["role"] == "key", "direction"].tolist()
    if FOR in decisive:
        return FOR
    if AGAINST in decisive or AGAINST in key:
        return AGAINST
    if not [d for d in (*decisive, *key) if d != UNTESTABLE]:
        return UNTESTABLE
    return FOR if key and set(key) == {FOR} else INCONCLUSIVE
