import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis360.core import Event
from analysis360.errors import TableError
from analysis360.plots import plot_loss, style
from tests.plots.frames import heldout_frame, loss_frame, spikes_frame


def lines(ax, colour):
    return [line for line in ax.lines if to_hex(line.get_color()).upper() == colour]


def test_panels_are_loss_heldout_and_gradient_norm():
    figure = plot_loss(loss_frame(), heldout=heldout_frame())
    assert [ax.get_ylabel().replace("\n", " ") for ax in figure.axes] == [
        "loss (nats per token)", "held-out loss (nats per token)", "gradient norm",
    ]  # fmt: skip
    assert figure.axes[2].get_yscale() == "log"
    assert figure.axes[-1].get_xlabel() == "tokens (M)"


def test_raw_values_are_drawn_as_they_are():
    loss = loss_frame()
    raw, median = lines(plot_loss(loss).axes[0], "#D55E00")
    mine = loss[loss["branch"] == "spike"]
    np.testing.assert_allclose(raw.get_ydata(), mine["loss"])
    np.testing.assert_allclose(raw.get_xdata(), mine["tokens"].astype(float) / 1e6)
    assert len(median.get_ydata()) == len(raw.get_ydata())


def test_the_rolling_median_is_named_and_can_be_left_out():
    words = [t.get_text() for t in plot_loss(loss_frame()).legends[0].get_texts()]
    assert any("rolling median of 5" in word for word in words)
    assert "spike (n = 480 steps)" in words
    raw_only = plot_loss(loss_frame(), smooth=1)
    assert len(lines(raw_only.axes[0], "#D55E00")) == 1
    assert not any("median" in t.get_text() for t in raw_only.legends[0].get_texts())


def test_a_spike_is_shaded_from_onset_to_end_in_tokens():
    figure = plot_loss(loss_frame(), spikes_frame())
    band = figure.axes[0].patches[0].get_bbox()
    assert band.x0 == pytest.approx(181 * 2560 / 1e6)
    assert band.x1 == pytest.approx(320 * 2560 / 1e6)
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "spike: sustained spike (n = 1)" in words and "spike: fast spike (n = 1)" in words


def test_a_spike_without_end_is_hatched_to_the_last_row():
    figure = plot_loss(loss_frame(), spikes_frame(censored=True))
    patch = figure.axes[0].patches[0]
    assert patch.get_hatch() == "///"
    assert patch.get_bbox().x1 == pytest.approx(480 * 2560 / 1e6)
    assert any("no end in the log" in t.get_text() for t in figure.legends[0].get_texts())


def test_without_tokens_the_axis_counts_steps():
    loss = loss_frame().drop(columns="tokens")
    figure = plot_loss(loss, spikes_frame())
    assert figure.axes[-1].get_xlabel() == "step"
    assert figure.axes[0].patches[0].get_bbox().x0 == pytest.approx(181)


def test_events_are_labelled_lines_in_every_panel():
    figure = plot_loss(loss_frame(), events=[Event("spike", 200, "chunk")])
    assert any(text.get_text() == "chunk" for text in figure.axes[0].texts)
    for ax in figure.axes:
        assert any(list(line.get_xdata()) == [200 * 2560 / 1e6] * 2 for line in ax.lines)


def test_heldout_band_is_one_standard_error():
    figure = plot_loss(loss_frame(), heldout=heldout_frame())
    band = figure.axes[1].collections[0].get_paths()[0].get_extents()
    values = heldout_frame().query("branch == 'spike'")["loss"]
    assert band.y1 == pytest.approx(values.max() + 0.05)
    assert "n = 28" in figure.axes[1].get_title(loc="right")


def test_one_axes_takes_the_loss_panel_alone():
    with style():
        mine = Figure()
        ax = mine.subplots()
    assert plot_loss(loss_frame(), ax=ax) is mine
    assert len(mine.axes) == 1 and ax.lines


def test_the_number_of_given_axes_is_checked():
    axes = Figure().subplots(3)
    with pytest.raises(TableError, match="3 axes were given"):
        plot_loss(loss_frame(), ax=list(axes))


def test_a_frame_without_the_column_is_refused():
    with pytest.raises(TableError, match=r"\['ppl'\] are missing"):
        plot_loss(loss_frame(), column="ppl")
    with pytest.raises(TableError, match="no rows"):
        plot_loss(loss_frame().iloc[:0])
