import numpy as np
import pytest

from analysis360.errors import TableError
from analysis360.plots import plot_benchmarks
from tests.plots.frames import joined_frame


def test_each_benchmark_has_scores_above_and_the_gap_below():
    figure = plot_benchmarks(joined_frame())
    assert len(figure.axes) == 8
    assert figure.axes[0].get_title(loc="left") == "next_byte_code\nn = 2,048"
    assert figure.axes[0].get_ylabel() == "acc ↑"
    assert figure.axes[1].get_ylabel() == "gap to\nnormal"


def test_values_gap_and_bands_are_those_of_the_frame():
    joined = joined_frame()
    figure = plot_benchmarks(joined)
    first = joined[joined["benchmark"].eq("next_byte_code") & joined["branch"].eq("spike")]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), first["value"])
    known = first[first["gap"].notna()]
    gap = figure.axes[1].lines[1]
    np.testing.assert_allclose(gap.get_ydata(), known["gap"])
    band = figure.axes[1].collections[0].get_paths()[0].get_extents()
    assert band.y1 == pytest.approx((known["gap"] + 1.959964 * 0.017).max())


def test_zero_is_marked_in_the_gap():
    assert list(plot_benchmarks(joined_frame()).axes[1].lines[0].get_ydata()) == [0.0, 0.0]


def test_scores_without_gaps_give_the_upper_panels():
    scores = joined_frame().drop(columns=["gap", "gap_stderr", "reference", "reference_branch"])
    figure = plot_benchmarks(scores)
    assert len(figure.axes) == 4
    assert "gap" not in figure.legends[0].get_texts()[-1].get_text()


def test_shots_and_metrics_are_kept_apart():
    joined = joined_frame()
    joined = joined[joined["benchmark"] == "digits"]
    joined.loc[joined.index[::2], "shots"] = 5
    figure = plot_benchmarks(joined)
    titles = {ax.get_title(loc="left") for ax in figure.axes} - {""}
    assert titles == {"digits\nn = 2,048", "digits\n5-shot, n = 2,048"}


def test_bad_input_is_refused():
    with pytest.raises(TableError, match="no rows"):
        plot_benchmarks(joined_frame().iloc[:0])
    with pytest.raises(TableError, match=r"\['metric'\] are missing"):
        plot_benchmarks(joined_frame().drop(columns="metric"))
    with pytest.raises(ValueError, match="columns must be at least 1"):
        plot_benchmarks(joined_frame(), columns=0)
