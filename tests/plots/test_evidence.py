import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis360.errors import TableError
from analysis360.plots import plot_evidence, style
from analysis360.plots.wrapping import text_width, wrapped
from tests.plots.event_frames import NAMES, matrix_frame


def words(figure):
    return " ".join(t.get_text() for t in figure.axes[0].texts)


def flat(text):
    return text.replace(" ", "")


@pytest.mark.parametrize("width", [3.3, 7.0])
def test_every_text_of_the_matrix_is_written(width):
    matrix = matrix_frame()
    with style(width=width):
        said = flat(words(plot_evidence(matrix)))
    for text in matrix.to_numpy().ravel():
        assert flat(str(text)) in said
    assert all(flat(name) in said for name in NAMES)


def test_the_head_counts_the_mechanisms_with_an_entry():
    said = words(plot_evidence(matrix_frame()))
    for head in ("+ for (n = 3)", "− against (n = 5)", "? untestable (n = 2)"):
        assert head in said


def test_texts_stay_in_their_column():
    figure = plot_evidence(matrix_frame())
    ax = figure.axes[0]
    figure.draw_without_rendering()
    edges = sorted({round(t.get_position()[0], 3) for t in ax.texts})
    assert len(edges) == 6
    to_data = ax.transData.inverted()
    for text in ax.texts:
        right = to_data.transform(text.get_window_extent().p1)[0]
        place = edges.index(round(text.get_position()[0], 3))
        assert right < ([*edges[1:], ax.get_xlim()[1] + 3][place])


def test_long_texts_are_cut_and_say_so():
    matrix = matrix_frame().head(1)
    matrix["for"] = "word " * 200
    assert words(plot_evidence(matrix, longest=50)).count("word") == 10
    assert "…" in words(plot_evidence(matrix, longest=50))


def test_axes_too_small_for_the_texts_are_refused_with_the_size_needed():
    with pytest.raises(TableError, match=r"need axes \d\.\d inches high"):
        plot_evidence(matrix_frame(), ax=Figure(figsize=(3.3, 2)).subplots())


def test_dollars_are_letters_and_missing_cells_are_empty():
    matrix = matrix_frame().head(1).assign(against=np.nan, untestable="costs $5 or $6")
    said = words(plot_evidence(matrix))
    assert "$5 or $6" in said and "nan" not in said


def test_lines_fit_and_lose_no_letter():
    text = "RMS of layers.12.mlp.down.weight rises " + "x" * 60
    lines = wrapped(text, 80, 8)
    assert all(text_width(line, 8) <= 80 for line in lines)
    assert flat("".join(lines)) == flat(text)
    assert wrapped("", 80, 8) == [] and wrapped("n\xa0=\xa05", 1, 8)
    assert pd.Series(lines).str.len().gt(0).all()
