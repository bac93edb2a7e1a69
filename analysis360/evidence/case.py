"""What is weighed: a branch, what it is held against, and effects with their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analysis360.table import statistic_columns

__all__ = ["Case", "Effects", "plain"]

MATRICES = ("embed", "head", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up",
            "mlp.down")  # fmt: skip
"""Modules whose weights are matrices."""

FEWEST = 3
"""Moves of the reference itself that a limit without placebos needs."""


@dataclass(frozen=True)
class Effects:
    """One statistic of a branch held against another, beside what is known to be no effect.

    Attributes
    ----------
    statistic, unit : str
    mine : DataFrame
        ``where, module, layer, head, step, effect``: of the branch.
    calm : tuple of DataFrame
        The same of each placebo; or, without any, one frame of the reference's own moves.
    source : str
        Where the limit comes from.
    placebos : int
    factor : float
        The largest calm effect is multiplied by this to give the limit.
    floor : float
        No limit is below it.
    why : str
        Why there is nothing in `mine`, or no limit.
    """

    statistic: str
    unit: str
    mine: pd.DataFrame
    calm: tuple[pd.DataFrame, ...]
    source: str
    placebos: int
    factor: float
    floor: float
    why: str = ""

    def map(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Effects:
        """The same transformation of what is judged and of what it is judged by."""
        return replace(self, mine=change(self.mine), calm=tuple(change(c) for c in self.calm))

    def limits(self, steps: Sequence[int], sign: int = 0) -> pd.Series:
        """Limit at each step: the largest calm effect so far, as calm branches part with time.

        Parameters
        ----------
        steps : sequence of int
        sign : {-1, 0, 1}
            Side that is looked at; 0 for both.
        """
        every = pd.concat(self.calm) if self.calm else self.mine.iloc[:0]
        effect = every["effect"].abs() if sign == 0 else (sign * every["effect"]).clip(lower=0)
        most = effect.groupby(every["step"]).max().sort_index().cummax()
        wanted = pd.Index(sorted(set(steps)))
        there = most.reindex(most.index.union(wanted)).ffill().bfill()
        return (self.factor * there.reindex(wanted)).clip(lower=self.floor).astype("float64")

    @property
    def n(self) -> int:
        """Calm effects that the limit is the largest of."""
        return int(sum(len(c) for c in self.calm))


@dataclass(frozen=True)
class Case:
    """A branch to be weighed, with all that was given about it.

    Attributes
    ----------
    table : DataFrame
        Measured table of one run, as from `plain`.
    branch, to : str
    placebos : tuple of str
    loss, spikes, vectors : DataFrame or None
    betas : tuple of float
        Adam's; they say how long the moments remember, and how far a step can go.
    """

    table: pd.DataFrame
    branch: str
    to: str
    placebos: tuple[str, ...] = ()
    loss: pd.DataFrame | None = None
    spikes: pd.DataFrame | None = None
    vectors: pd.DataFrame | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    _made: dict[object, Effects] = field(default_factory=dict, compare=False, repr=False)

    @property
    def memory(self) -> int:
        """Steps in which Adam's second moment forgets 95 %: ln 0.05 / ln beta2."""
        return math.ceil(math.log(0.05) / math.log(self.betas[1]))

    @property
    def bound(self) -> float:
        """Most that Adam moves a coordinate in a step of unit rate, by Cauchy–Schwarz."""
        one, two = self.betas
        return (1 - one) / math.sqrt((1 - two) * (1 - one**2 / two))

    @cached_property
    def onset(self) -> int | None:
        """Step at which the first lasting loss spike of the branch begins, if one is known."""
        return _first(self.spikes, self.branch)

    @cached_property
    def quiet_until(self) -> float:
        """Step at which the reference has a spike of its own, after which it is no reference."""
        mine = self.steps(self.branch)
        first = _first(self.spikes, self.to, above=mine[0] if mine else -1)
        return math.inf if first is None else first

    def steps(self, branch: str) -> list[int]:
        """Steps of the checkpoints of a branch."""
        rows = self.table.loc[self.table["branch"] == branch, "step"]
        return sorted(int(step) for step in rows.dropna().unique())

    @cached_property
    def early(self) -> float:
        """Last step that is no later than the onset interval; infinite without an onset."""
        if self.onset is None:
            return math.inf
        return next((s for s in self.steps(self.branch) if s >= (self.onset or 0)), math.inf)

    def gap(self, before: bool) -> float:
        """Steps from the onset to the nearest checkpoint of the branch or, before, its parent."""
        if self.onset is None:
            return math.inf
        if before:
            there = [s for s in (*self.steps(self.branch), *self.steps(self.to)) if s < self.onset]
            return self.onset - max(there) if there else math.inf
        there = [s for s in self.steps(self.branch) if s >= self.onset]
        return min(there) - self.onset if there else math.inf

    def effects(
        self, statistic: str, *, against: str = "", log: bool = True, floor: float = 0.1
    ) -> Effects:
        """Effects of a statistic, of all tensors, at matched checkpoints; see `Effects`.

        Parameters
        ----------
        statistic : str
        against : str
            Role of the checkpoint that the statistic compares with.
        log : bool
            Base-2 logarithm of the ratio; else the difference.
        floor : float
            Least limit.
        """
        key = (statistic, against, log, floor)
        if key not in self._made:
            self._made[key] = self._effects(statistic, against, log, floor)
        return self._made[key]

    def _effects(self, statistic: str, against: str, log: bool, floor: float) -> Effects:
        unit = "log2 ratio" if log else "difference"
        empty = pd.DataFrame(columns=list(_FRAME)).astype(_FRAME)
        made = Effects(statistic, unit, empty, (), "", len(self.placebos), 2.0, floor)
        rows = self.rows(statistic, against)
        if rows.empty:
            return replace(made, why=self.lacks(statistic, against))
        matched = self._matched(rows, statistic, log)
        mine = matched.get(self.branch)
        if mine is None:
            return replace(made, why=f"no matched checkpoint has {statistic} in both branches")
        placebos = [matched[name] for name in self.placebos if name in matched]
        if placebos:
            k = len(placebos)
            said = f"largest such effect of {k} placebo{'s' if k > 1 else ''} up to that checkpoint"
            return replace(made, mine=mine, calm=tuple(placebos), placebos=k, factor=1 + 1 / k,
                           source=f"{1 + 1 / k:.3g} × the {said}")  # fmt: skip
        own = self._moves(rows, statistic, log, mine)
        if own.groupby(["where"]).size().max() < FEWEST or own.empty:
            why = f"too few points: no placebo, and fewer than {FEWEST} moves of {self.to} itself"
            return replace(made, mine=mine, why=why, placebos=0)
        said = f"2 × the largest move of {self.to} between its own checkpoints; no placebo"
        return replace(made, mine=mine, calm=(own,), placebos=0, source=said)

    def rows(self, statistic: str, against: str = "") -> pd.DataFrame:
        """Rows that have a statistic, of weights or of both moments."""
        if statistic not in self.table:
            return self.table.iloc[:0].assign(**{statistic: np.nan})
        fits = self.table["against"].eq(against) & self.table[statistic].notna()
        fits &= self.table["state"].isin(["weight", "adam"])
        return self.table.loc[fits, [*_KEPT, statistic]]

    def lacks(self, statistic: str, against: str = "") -> str:
        """Why a statistic cannot be had."""
        if not (self.table["state"] == "adam").any() and statistic in MOMENTS:
            return "no optimizer moments in the table"
        if statistic not in self.table:
            return f"{statistic} was not measured"
        return f"{statistic} is not defined in any row{f' against {against}' if against else ''}"

    @cached_property
    def clock(self) -> str:
        """What checkpoints are matched by: tokens, or steps where a branch has no tokens."""
        there = self.table.groupby("branch")["tokens"].count()
        return "tokens" if all(there.get(b, 0) for b in (self.branch, self.to)) else "step"

    def _matched(self, rows: pd.DataFrame, statistic: str, log: bool) -> dict[str, pd.DataFrame]:
        """Effects of the branch and its placebos, each where it has any."""
        both = ["state", self.clock]
        rows = rows[rows[self.clock].notna() & (rows["step"] < self.quiet_until)]
        right = rows.loc[rows["branch"] == self.to, ["place", *both, "reference_step", statistic]]
        left = rows[rows["branch"].isin([self.branch, *self.placebos])]
        wide = left.merge(right, on=["place", *both], suffixes=("", " of to"))
        # both may be compared with a checkpoint, but of different steps
        one, other = wide["reference_step"], wide["reference_step of to"]
        wide = wide[~(one.notna() & other.notna() & (one != other))]
        value, reference = wide[statistic], wide[f"{statistic} of to"]
        effect = _log2(value) - _log2(reference) if log else value - reference
        frame = _frame(wide, effect).assign(branch=wide["branch"])
        return {str(name): part.drop(columns="branch").reset_index(drop=True)
                for name, part in frame.groupby("branch") if len(part)}  # fmt: skip

    def _moves(
        self, rows: pd.DataFrame, statistic: str, log: bool, mine: pd.DataFrame
    ) -> pd.DataFrame:
        """The reference against itself one checkpoint earlier, in the span that is looked at."""
        own = rows[(rows["branch"] == self.to) & (rows["step"] < self.quiet_until)]
        own = own.sort_values("step", kind="stable")
        value = own[statistic]
        earlier = value.groupby(own["place"]).shift()
        frame: pd.DataFrame = _frame(own, _log2(value) - _log2(earlier) if log else value - earlier)
        # the moves of a warm-up are no measure: look back as far as the span looks ahead
        first, last = mine["step"].min(), mine["step"].max()
        kept: pd.DataFrame = frame[frame["step"] >= 2 * first - last - 1]
        return kept.reset_index(drop=True)


_FRAME = {
    "where": "object", "module": "object", "layer": "float64", "head": "float64",
    "step": "float64", "effect": "float64",
}  # fmt: skip
_KEPT = [
    "branch", "name", "module", "layer", "head", "step", "tokens", "state", "against",
    "reference_step", "place", "where",
]  # fmt: skip
_PLACE = ["name", "layer", "module", "param", "expert", "head"]
MOMENTS = {
    "adam_snr", "update_rms", "update_max", "update_large_fraction", "update_kurtosis",
    "grad_norm_ema", "momentum_norm", "eps_ratio", "eps_fraction", "eps10_fraction",
    "effective_lr_p99", "v_row_top_share", "bound_violations", "v_negative", "moment_nonfinite",
    "optimizer_step",
}  # fmt: skip
"""Statistics that are made of Adam's moments."""


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows in numpy's dtypes, which take a tenth of the time, with place and name.

    ``place`` numbers what a row is of; ``where`` says it.
    """
    rows = {c: table[c].to_numpy(dtype=object) for c in ("branch", "name", "module", "state")}
    rows["against"] = table["against"].to_numpy(dtype=object)
    for column in ("layer", "head", "step", "tokens"):
        rows[column] = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    rows["place"] = table.groupby(_PLACE, dropna=False, sort=False).ngroup().to_numpy()
    rows["where"] = np.array([
        name or ("all tensors" if math.isnan(layer) else f"layer {layer:.0f}")
        for name, layer in zip(rows["name"], rows["layer"])
    ], dtype=object)  # fmt: skip
    if "dtype" in table:
        rows["dtype"] = table["dtype"].to_numpy(dtype=object)
    for column in dict.fromkeys(["reference_step", *statistic_columns(table)]):
        rows[column] = np.full(len(table), np.nan)
        if column in table and pd.api.types.is_numeric_dtype(table[column]):
            rows[column] = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return pd.DataFrame(rows)


def _frame(rows: pd.DataFrame, effect: pd.Series) -> pd.DataFrame:
    frame = rows[["where", "module", "layer", "head", "step"]].assign(effect=effect)
    finite: pd.DataFrame = frame[np.isfinite(effect.to_numpy(dtype=np.float64))]
    return finite


def _log2(value: pd.Series) -> pd.Series:
    """NaN where the value is not positive and finite."""
    found: pd.Series = np.log2(value.where((value > 0) & np.isfinite(value)))
    return found


def _first(spikes: pd.DataFrame | None, branch: str, above: int = -1) -> int | None:
    if spikes is None or spikes.empty:
        return None
    fits = (spikes["branch"] == branch) & (spikes["onset"] > above)
    if "channel" in spikes:
        fits &= spikes["channel"] == "sustained"
    onsets = spikes.loc[fits, "onset"].dropna()
    return int(onsets.min()) if len(onsets) else None
