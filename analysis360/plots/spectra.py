"""Spectra of weight matrices: over training, at one checkpoint, and what they allow the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis360.errors import TableError
from analysis360.plots.axes import given_axes
from analysis360.plots.panels import (
    DASHES,
    GUIDE,
    branches_of,
    legend,
    numbers,
    one_shape,
)  # fmt: skip
from analysis360.plots.style import (
    DENSE,
    OKABE_ITO,
    branch_colours,
    clock,
    log_ticks,
    module_rank,
    need_columns,
    styled,
)  # fmt: skip

__all__ = ["plot_spectra"]

TITLE = "plot_spectra"
LABELS = {
    "spectral_norm": "σ₁ of the matrix\n(unit of the weights)",
    "stable_rank": "stable rank\n(directions)",
    "effective_rank": "effective rank\n(directions)",
    "participation_ratio": "participation ratio\n(directions)",
    "power_law_alpha": "power-law exponent α",
}
COLOURS = {
    "attn.q": "blue", "attn.k": "sky", "attn.v": "green", "attn.o": "black", "attn.qkv": "blue",
    "mlp.gate": "orange", "mlp.up": "vermilion", "mlp.down": "purple", "embed": "grey",
    "head": "grey",
}  # fmt: skip
SPECTRUM, LOGITS = "spectrum", "logits"
LOGIT = {"qk_logit_rms": ("o", "isotropic inputs (RMS)"), "qk_logit_bound": ("_", "bound (loose)")}
LAYERS = ("blue", "green", "orange", "purple", "sky", "black")
LEAST = 1e-5
"""Of the largest eigenvalue: smaller ones lie left of the axis."""

HINT = 'measure plan(run, ["effective_rank"]), then load_table(path, kind="vectors")'

GOLDEN = 0.618034
"""Multiples of it, without the whole part, spread points evenly however many there are."""


@styled
def plot_spectra(
    table: pd.DataFrame,
    vectors: pd.DataFrame | None = None,
    *,
    branch: str | None = None,
    to: str | None = None,
    statistics: Sequence[str] = ("spectral_norm", "stable_rank"),
    module: str | None = None,
    layers: Iterable[int] | None = None,
    step: int | None = None,
    against: str = "",
    size: str = "page",
    ax: Axes | Sequence[Axes] | None = None,
) -> Figure:
    r"""Draw how the singular values of the weights moved, and what they are at one checkpoint.

    First the statistics over training, a line for each matrix in the colour of its module. Then,
    with `vectors`, the spectrum itself for a few layers: the share of the eigenvalues
    :math:`\lambda=\sigma^2` that are at least :math:`\lambda`, on two logarithmic axes, with the
    fitted power law as a dashed line from its threshold on where the table has it (its slope here
    is :math:`1-\alpha`; no bins are chosen, as for a density; below 1e-5 of the largest
    nothing is drawn). Then, where the table has them, the attention logits of every head at a few
    checkpoints: for isotropic inputs, and the bound. The bound is loose by orders of magnitude:
    read its growth, not its level.

    Parameters
    ----------
    table : DataFrame
        Measured table of tensors, from ``load_table(path)``.
    vectors : DataFrame, optional
        From ``load_table(path, kind="vectors", statistics=["effective_rank"])``.
    branch : str, optional
        What to draw; by default ``"spike"`` if there, else the first.
    to : str, optional
        Another branch, dotted.
    statistics : sequence of str
        Columns of the table, one panel each.
    module, layers, step
        Whose spectrum: by default the first module as data flows, its first, middle and last
        layer, at the last step of `branch`.
    against : str
        Rows that compare with this checkpoint, for statistics of the change such as
        ``delta_stable_rank``; by default those that compare with none.
    size : str
        ``"column"`` (3.3 inches wide), ``"page"`` (7) or ``"slide"`` (10, with larger type).
    ax : Axes or sequence of Axes, optional
        One axes takes the first panel alone.

    Returns
    -------
    Figure

    Raises
    ------
    TableError
        If the table has none of the statistics, or there is no such branch, module, layer or step.

    Examples
    --------
    >>> table = pd.DataFrame({"branch": "a", "step": [1, 2], "tokens": [10, 20], "name": "w",
    ...     "layer": 0, "module": "mlp.up", "state": "weight", "spectral_norm": [1.0, 1.1],
    ...     "stable_rank": [5.0, 5.1]})
    >>> [ax.get_ylabel() for ax in plot_spectra(table).axes][1]
    'stable rank\n(directions)'
    """
    need_columns(
        table, ["branch", "step", "name", "layer", "module", "state"], TITLE,
        f"measure plan(run, {list(statistics)}), then load_table(path)",
    )  # fmt: skip
    rows = table[table["against"].fillna("") == against] if "against" in table.columns else table
    rows = rows[rows["state"].isin(["weight", "master"])]
    there = [name for name in statistics if name in rows.columns and rows[name].notna().any()]
    if not there:
        raise TableError(
            f"{TITLE}: no matrix of the table has any of {list(statistics)}; measure "
            f"plan(run, {list(statistics)}), and use load_table(path): spectra do not merge"
        )
    first = "spike" if rows["branch"].eq("spike").any() else str(rows["branch"].iloc[0])
    names = branches_of(rows, [branch or first, *([to] if to else [])], TITLE)
    rows = rows[rows["branch"].isin(names)]
    spectra = None if vectors is None else _spectra(vectors, names[0], module, layers, step)
    logits = [name for name in LOGIT if name in rows.columns and rows[name].notna().any()]
    panels = [*there, *([SPECTRUM] if spectra is not None else []), *([LOGITS] if logits else [])]
    axes = given_axes(ax, panels, TITLE, first=True) or one_shape(len(panels), 2.0)
    handles: list[Artist] = []
    for panel, name in zip(axes, panels, strict=False):
        if name == SPECTRUM and spectra is not None:
            _spectrum(panel, spectra, rows)
        elif name == LOGITS:
            _logits(panel, rows[rows[logits[0]].notna()], logits, names)
        else:
            handles += _lines(panel, rows[rows[name].notna()], name, names)
    once = {str(handle.get_label()): handle for handle in handles}
    return legend(ax, axes[0], list(once.values()))


def _look(module: str) -> dict[str, Any]:
    known = OKABE_ITO[COLOURS.get(module, "black")]
    return {"color": known, "ls": DASHES[1] if module == "head" else "-"}


def _lines(ax: Axes, rows: pd.DataFrame, name: str, names: Sequence[str]) -> list[Artist]:
    """One line a matrix and branch."""
    time = clock(rows, title=TITLE)
    keys = ["branch", "name", "state", *(["run"] if "run" in rows.columns else [])]
    if rows.duplicated(["branch", "name", time.column]).any():
        raise TableError(f"{TITLE}: a matrix is there twice at one {time.column}; use one run")
    dense = len(rows) > 2 * DENSE
    modules = sorted(rows["module"].unique(), key=module_rank)
    for (branch, _, *_), line in rows.groupby(keys, sort=False):
        line = line.sort_values(time.column, kind="stable")
        look = _look(str(line["module"].iloc[0]))
        look |= {"ls": DASHES[2], "alpha": 0.6} if branch != names[0] else {}
        x, y = time.of(line[time.column]), numbers(line, name)
        ax.plot(x, y, lw=0.8, rasterized=dense, **look)
        if f"{name}_error" in line.columns:
            error = numbers(line, f"{name}_error")
            if np.nanmax(error / np.abs(y), initial=0.0) > 1e-3:  # below, thinner than the line
                ax.fill_between(x, y - error, y + error, color=look["color"], alpha=0.2, lw=0)
    ax.set_xlabel(time.label)
    ax.set_ylabel(LABELS.get(name, name.replace("_", " ")))
    ax.set_yscale("log")
    log_ticks(ax.yaxis)
    points = rows[time.column].nunique()
    ax.set_title(
        f"n = {rows['name'].nunique():,} matrices, {points:,} checkpoints", fontsize="small"
    )
    handles: list[Artist] = [Line2D([], [], lw=1.2, label=m, **_look(str(m))) for m in modules]
    for branch, dashes in zip(names, ("-", DASHES[2]), strict=False):
        if len(names) > 1:
            handles.append(Line2D([], [], color="#555555", ls=dashes, label=str(branch)))
    return handles


def _spectra(
    vectors: pd.DataFrame, branch: str, module: str | None, layers: Iterable[int] | None,
    step: int | None,
) -> pd.DataFrame:  # fmt: skip
    """Singular values of the chosen layers of one module at one step, in order of layers."""
    need_columns(
        vectors, ["branch", "step", "name", "layer", "module", "vector", "values"],
        f"{TITLE}, vectors", HINT,
    )  # fmt: skip
    rows = vectors[(vectors["vector"] == "singular_values") & (vectors["branch"] == branch)]
    if "against" in rows.columns:
        rows = rows[rows["against"].fillna("") == ""]
    if rows.empty:
        raise TableError(f"{TITLE}: vectors has no singular_values of branch {branch!r}; {HINT}")
    for column, wanted in (("step", step), ("module", module)):
        if wanted is None:
            known = sorted(rows["module"].unique(), key=module_rank)
            wanted = rows["step"].max() if column == "step" else known[0]
        chosen = rows[rows[column] == wanted]
        if chosen.empty:
            there = sorted(rows[column].dropna().unique())
            raise TableError(f"{TITLE}: no spectrum at {column} {wanted!r}; there are {there}")
        rows = chosen
    known = sorted(int(layer) for layer in rows["layer"].dropna().unique())
    if layers is not None or known:
        some = [known[0], known[len(known) // 2], known[-1]] if layers is None else list(layers)
        absent = [layer for layer in some if layer not in known]
        if absent:
            raise TableError(f"{TITLE}: no spectrum of the layers {absent}; there are {known}")
        rows = rows[rows["layer"].isin(some)]
    return rows.sort_values(["layer", "name"], kind="stable").drop_duplicates("layer")


def _spectrum(ax: Axes, spectra: pd.DataFrame, table: pd.DataFrame) -> None:
    """Share of the eigenvalues that are at least λ, and the power law where it was fitted."""
    dense, top = sum(len(values) for values in spectra["values"]) > DENSE, 0.0
    for place, (_, row) in enumerate(spectra.iterrows()):
        values = np.asarray(row["values"], dtype=np.float64)
        squares = np.sort(values[values > 0])[::-1] ** 2
        if not len(squares):
            continue
        share = np.arange(1, len(squares) + 1) / len(values)
        colour = OKABE_ITO[LAYERS[place % len(LAYERS)]]
        words = str(row["name"]) if pd.isna(row["layer"]) else f"layer {row['layer']}"
        law = table[(table["name"] == row["name"]) & (table["step"] == row["step"])]
        law = law[law["branch"] == row["branch"]]
        words += _law(ax, law, squares, len(values), colour)
        ax.plot(
            squares, share, color=colour, lw=1.2, drawstyle="steps-post", label=words,
            rasterized=dense,
        )  # fmt: skip
        top = max(top, float(squares[0]))
    first = spectra.iloc[0]
    ax.set_xscale("log")
    ax.set_yscale("log")
    if top > 0:
        ax.set_xlim(max(LEAST * top, 0.5 * ax.dataLim.minposx), 2 * top)
    ax.set_xlabel("eigenvalue λ = σ² (weights squared)")
    ax.set_ylabel("share of eigenvalues ≥ λ")
    ax.set_title(f"{first['module']}, {first['branch']}, step {first['step']:,}", fontsize="small")
    ax.legend(loc="lower left", fontsize="small", handlelength=1.2, borderaxespad=0.4)


def _law(ax: Axes, law: pd.DataFrame, squares: np.ndarray, count: int, colour: str) -> str:
    """Draw the fitted tail; say its exponent, error and size."""
    names = ("power_law_alpha", "power_law_xmin", "power_law_tail")
    if len(law) != 1 or any(c not in law.columns or law[c].isna().any() for c in names):
        return f" (n = {count:,})"
    alpha, xmin, tail = (float(law[c].iloc[0]) for c in names)
    x = np.array([xmin, squares[0]])
    ax.plot(
        x, tail / count * (x / xmin) ** (1 - alpha), color=GUIDE, lw=0.9, ls=DASHES[1], zorder=2.5
    )
    error = ""
    if "power_law_alpha_se" in law.columns and law["power_law_alpha_se"].notna().all():
        error = f" ± {float(law['power_law_alpha_se'].iloc[0]):.2f}"
    return f": α = {alpha:.2f}{error}\n(n = {count:,}, {tail:.0f} in the tail)"


def _logits(ax: Axes, rows: pd.DataFrame, columns: Sequence[str], names: Sequence[str]) -> None:
    """Each head as a point, side by side at a few checkpoints."""
    known = np.array(sorted(rows[rows["branch"] == names[0]]["step"].dropna().unique()))
    steps = known[np.unique(np.linspace(0, len(known) - 1, 5).round().astype(int))]
    colours, wide = branch_colours(names), 0.7 / len(names)
    rows = rows[rows["step"].isin(list(steps))]
    handles: list[Artist] = []
    for column in columns:
        marker, words = LOGIT[column]
        for beside, branch in enumerate(names):
            mine = rows[rows["branch"] == branch].sort_values(column, kind="stable")
            order = mine.groupby("step").cumcount().to_numpy()
            x = np.searchsorted(steps, mine["step"].to_numpy()) - 0.35 + wide * beside
            ax.plot(
                x + wide * ((order * GOLDEN) % 1.0), numbers(mine, column), ls="none",
                ms=4 if marker == "_" else 2.2, marker=marker, color=colours[branch], alpha=0.7,
                rasterized=len(mine) > DENSE, mew=0.7 if marker == "_" else 0.4,
            )  # fmt: skip
        handles.append(Line2D([], [], ls="none", marker=marker, color="#555555", label=words))
    ax.set_xticks(range(len(steps)), [f"{int(step):,}" for step in steps])
    ax.set_xlabel("step")
    ax.set_ylabel("attention logits\nof each head")
    ax.set_yscale("log")
    log_ticks(ax.yaxis)
    heads = int(rows.groupby(["branch", "step"]).size().max())
    ax.set_title(f"{' and '.join(names)}: n = {heads:,} heads", fontsize="small")
    ax.legend(handles=handles, loc="best", fontsize="small", handlelength=1.0)
