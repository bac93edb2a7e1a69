import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis360.core import Fork
from analysis360.errors import TableError
from analysis360.plots import plot_divergence
from tests.plots.frames import FORK, MODULES, STEPS, TOKENS, table_frame

FORKS = (Fork("normal", "spike", FORK), Fork("placebo", "spike", FORK))


def labelled(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_x_is_the_tokens_since_the_fork_and_both_axes_are_logarithmic():
    figure = plot_divergence(table_frame("all"), forks=FORKS)
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel() == "tokens since the fork (k)"
    assert labelled(ax)["spike (n = 8)"].get_xdata()[0] == pytest.approx(STEPS * TOKENS / 1e3)


def test_guides_have_the_slopes_they_are_labelled_with():
    lines = labelled(plot_divergence(table_frame("all"), forks=FORKS).axes[0])
    for name, slope in (("slope 1/2", 0.5), ("slope 1", 1.0)):
        x, y = np.log(lines[name].get_xdata()), np.log(lines[name].get_ydata())
        assert np.polyfit(x, y, 1)[0] == pytest.approx(slope)


def test_without_forks_the_axis_is_plain_tokens_and_has_no_guides():
    ax = plot_divergence(table_frame("all")).axes[0]
    assert ax.get_xscale() == "linear" and ax.get_xlabel() == "tokens (M)"
    assert not any("slope" in name for name in labelled(ax))


def test_the_mirror_image_of_the_pair_is_left_out_and_the_placebo_kept():
    names = list(labelled(plot_divergence(table_frame("all"), forks=FORKS).axes[0]))
    assert names[:2] == ["spike (n = 8)", "placebo (n = 8)"]
    assert not any("normal" in name for name in names)


def test_a_table_of_modules_gives_a_line_each():
    figure = plot_divergence(table_frame("module"), forks=FORKS)
    names = list(labelled(figure.axes[0]))
    assert names[: len(MODULES)] == list(MODULES)
    assert "placebo, any module" in names
    assert figure.axes[1].get_ylabel() == "cosine to the ancestor"


def test_without_an_ancestor_the_second_panel_is_the_relative_displacement():
    table = table_frame("all")
    figure = plot_divergence(table[table["against"] != "ancestor"], forks=FORKS)
    assert figure.axes[1].get_ylabel() == "relative displacement to the partner"


def test_branches_can_be_named():
    ax = plot_divergence(table_frame("all"), branches=["placebo"], forks=FORKS).axes[0]
    assert list(labelled(ax))[0] == "placebo (n = 8)"
    with pytest.raises(TableError, match=r"branches \['x'\]; there are"):
        plot_divergence(table_frame("all"), branches=["x"])


def test_one_axes_takes_the_first_panel_alone():
    figure = Figure()
    ax = figure.subplots()
    assert plot_divergence(table_frame("all"), ax=ax) is figure
    assert ax.get_ylabel() == "displacement to the partner"


def test_a_table_of_tensors_is_refused_with_what_to_do():
    with pytest.raises(TableError, match='load_table\\(path, by="module"\\)'):
        plot_divergence(table_frame("tensor"))


def test_missing_rows_and_columns_are_named():
    table = table_frame("all")
    with pytest.raises(TableError, match="against 'previous'"):
        plot_divergence(table, against="previous")
    with pytest.raises(TableError, match=r"\['displacement'\] are missing"):
        plot_divergence(table.drop(columns="displacement"))
    with pytest.raises(TableError, match="repeat a point"):
        plot_divergence(pd.concat([table, table]))
