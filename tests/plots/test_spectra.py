import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis360.errors import TableError
from analysis360.plots import plot_spectra, save_svg
from tests.plots.deep_frames import spectra_table, vectors_frame


def test_panels_are_statistics_spectrum_and_logits():
    figure = plot_spectra(spectra_table(), vectors_frame())
    labels = [ax.get_ylabel().split("\n")[0] for ax in figure.axes]
    assert labels == [
        "σ₁ of the matrix", "stable rank", "share of eigenvalues ≥ λ", "attention logits"
    ]  # fmt: skip
    assert figure.axes[3].get_title(loc="left") == "spike: n = 6 heads"


def test_a_line_is_the_column_of_its_matrix():
    table = spectra_table()
    ax = plot_spectra(table).axes[0]
    mine = table[(table["branch"] == "spike") & (table["name"] == "layers.0.mlp.up")]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mine["spectral_norm"])
    assert ax.get_title(loc="left") == "n = 2 matrices, 2 checkpoints"
    assert len(ax.collections) == 2  # an error of more than a thousandth is shown


def test_the_spectrum_is_the_share_at_or_above():
    vectors, table = vectors_frame(), spectra_table()
    ax = plot_spectra(table, vectors, statistics=["stable_rank"], step=160).axes[1]
    chosen = vectors["vector"].eq("singular_values") & vectors["branch"].eq("spike")
    values = vectors[chosen & vectors["step"].eq(160) & vectors["layer"].eq(0)]["values"].iloc[0]
    line = next(line for line in ax.lines if line.get_label().startswith("layer 0"))
    for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
        assert y == pytest.approx(np.mean([v**2 >= x * (1 - 1e-12) for v in values]))


def test_the_power_law_begins_at_its_threshold_with_the_share_of_its_tail():
    ax = plot_spectra(spectra_table(), vectors_frame(), statistics=["stable_rank"]).axes[1]
    law = next(line for line in ax.lines if line.is_dashed())
    x, y = np.asarray(law.get_xdata()), np.asarray(law.get_ydata())
    assert (x[0], y[0]) == pytest.approx((1.0, 16 / 40))
    assert np.diff(np.log(y)) / np.diff(np.log(x)) == pytest.approx(1 - 3.0)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words[0] == "layer 0: α = 3.00 ± 0.50\n(n = 40, 16 in the tail)"


def test_heads_are_all_drawn_and_their_bound_has_no_level_beside_it():
    table = spectra_table()
    ax = plot_spectra(table, statistics=["stable_rank"]).axes[1]
    mine = table[(table["branch"] == "spike") & table["qk_logit_rms"].notna()]
    for line, column in zip(ax.lines, ("qk_logit_rms", "qk_logit_bound"), strict=True):
        np.testing.assert_allclose(np.sort(line.get_ydata()), np.sort(mine[column]))


def test_another_branch_is_dotted():
    figure = plot_spectra(spectra_table(), to="normal")
    assert len(figure.axes[0].lines) == 4
    assert "normal" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_change_against_another_checkpoint():
    table = spectra_table().assign(against="previous").rename(columns={"stable_rank": "delta"})
    with pytest.raises(TableError, match="no matrix of the table"):
        plot_spectra(table, statistics=["delta"])
    assert plot_spectra(table, statistics=["delta"], against="previous").axes[0].lines


def test_bad_input_is_refused():
    table, vectors = spectra_table(), vectors_frame()
    with pytest.raises(
        TableError, match=r"measure plan\(run, \['spectral_norm', 'stable_rank'\]\)"
    ):
        plot_spectra(table.drop(columns=["spectral_norm", "stable_rank"]))
    with pytest.raises(TableError, match=r"no rows, .*; measure plan\(run, \['spectral_norm'"):
        plot_spectra(table.iloc[:0])
    with pytest.raises(TableError, match=r'plan\(run, \["effective_rank"\]\)'):
        plot_spectra(table, vectors[vectors["vector"] == "row_v_sum"])
    with pytest.raises(TableError, match="no spectrum at module 'head'"):
        plot_spectra(table, vectors, module="head")
    with pytest.raises(TableError, match=r"of the layers \[9\]; there are \[0, 1\]"):
        plot_spectra(table, vectors, layers=[9])
    with pytest.raises(TableError, match=r"branches \['x'\]"):
        plot_spectra(table, branch="x")
    with pytest.raises(TableError, match="a matrix is there twice"):
        plot_spectra(pd.concat([table, table]))
    with pytest.raises(TableError, match="5 axes were given"):
        plot_spectra(table, ax=list(Figure().subplots(5)))


@pytest.mark.slow
def test_a_large_model_stays_small_as_vector_graphics():
    """80 layers of 7 modules at 60 checkpoints: 33,600 points; and spectra of 8192 values."""
    rng = np.random.default_rng(0)
    names = [(layer, module) for layer in range(80) for module in "abcdefg"]
    table = pd.DataFrame({
        "branch": "main", "step": np.repeat(np.arange(60), len(names)), "state": "weight",
        "name": [f"{layer}.{module}" for layer, module in names] * 60,
        "layer": [layer for layer, _ in names] * 60, "module": [m for _, m in names] * 60,
        "spectral_norm": rng.lognormal(size=60 * len(names)),
    })  # fmt: skip
    vectors = pd.DataFrame({
        "branch": "main", "step": 59, "name": [f"{i}.a" for i in (0, 40, 79)], "module": "a",
        "layer": [0, 40, 79], "vector": "singular_values",
        "values": [np.sort(rng.lognormal(size=8192))[::-1] for _ in range(3)],
    })  # fmt: skip
    figure = plot_spectra(table, vectors, size="column")
    assert len(save_svg(figure)) < 1_000_000
    with io.BytesIO() as pdf:
        figure.savefig(pdf, format="pdf")
        assert len(pdf.getvalue()) < 1_000_000
