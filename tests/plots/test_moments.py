import numpy as np
import pandas as pd
import pytest

from analysis360.errors import TableError
from analysis360.plots import plot_moments
from tests.plots.frames import table_frame


def test_there_are_four_panels_for_all_tensors_together():
    figure = plot_moments(table_frame("all"))
    assert len(figure.axes) == 4
    assert figure.axes[2].get_yscale() == "log"
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words[0] == "spike (n = 12 checkpoints)" and words[-1] == "noise alone (null)"


def test_the_null_is_that_of_the_table():
    table = table_frame("all")
    table["adam_snr_null"] = 0.07
    dashed = [line for line in plot_moments(table).axes[1].lines if line.is_dashed()]
    assert len(dashed) == 1
    np.testing.assert_allclose(dashed[0].get_ydata(), 0.07)


def test_without_a_null_in_the_table_none_is_drawn():
    figure = plot_moments(table_frame("all").drop(columns="adam_snr_null"))
    assert not any(line.is_dashed() for line in figure.axes[1].lines)
    assert "noise alone (null)" not in [t.get_text() for t in figure.legends[0].get_texts()]


def test_columns_that_are_all_missing_give_no_panel():
    table = table_frame("all")
    table["eps_fraction"] = np.nan
    assert len(plot_moments(table).axes) == 3


def test_a_table_of_layers_gives_a_column_for_each_branch():
    figure = plot_moments(table_frame("layer", layers=2))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == [
        "spike (n = 12 checkpoints)", "normal (n = 8 checkpoints)", "placebo (n = 8 checkpoints)",
    ]  # fmt: skip
    assert figure.axes[-1].get_ylabel() == "layer"
    top = figure.axes[-2].get_ylim()[1]
    assert top >= table_frame("layer", layers=2)["eps_fraction"].max()


def test_rows_against_another_checkpoint_are_not_drawn():
    table = table_frame("all")
    both = pd.concat([table, table.assign(against="previous", update_rms=7.0)])
    drawn = plot_moments(both).axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, plot_moments(table).axes[0].lines[0].get_ydata())
    with pytest.raises(TableError, match='no row has state "adam"'):
        plot_moments(table.assign(against="previous"))


def test_what_cannot_be_drawn_is_refused():
    table = table_frame("all")
    with pytest.raises(TableError, match='no row has state "adam"'):
        plot_moments(table[table["state"] != "adam"])
    with pytest.raises(TableError, match="repeat a branch"):
        plot_moments(pd.concat([table, table]))
    with pytest.raises(TableError, match="several tensors of one layer"):
        plot_moments(table_frame("tensor"))
    with pytest.raises(TableError, match="have none of"):
        plot_moments(table[["branch", "state", "layer", "tokens"]])
