"""The robust detector on planted spikes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis360.errors import LogError
from analysis360.spikes import find_spikes
from tests.spikes.logs import falling, frame


def only(found: pd.DataFrame) -> pd.Series:
    assert len(found) == 1
    return found.iloc[0]


def test_columns_and_dtypes_also_without_events() -> None:
    for found in (find_spikes(frame(falling())), find_spikes(frame([3.0]))):
        assert found.empty
        assert list(found)[:6] == ["branch", "channel", "onset", "peak", "end", "recovery"]
        assert found["onset_tokens"].dtype == "Int64" and found["censored"].dtype == bool


@pytest.mark.parametrize("height", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("length", [4, 20, 100])
def test_planted_spike_is_found_where_it_was_planted(height: float, length: int) -> None:
    values = falling()
    calm = values.copy()
    values[300 : 300 + length] += height * np.linspace(1, 0.6, length)
    event = only(find_spikes(frame(values)))
    assert event["channel"] == "sustained" and not event["censored"]
    assert event["onset"] == 300 and event["peak"] == 300 + np.argmax(values[300:])
    assert event["end"] == 300 + length and event["points"] == length
    assert event["recovery"] >= event["end"]
    assert event["onset_tokens"] == 300_000 and event["end_tokens"] == event["end"] * 1000
    assert event["height"] == pytest.approx(height, abs=0.1)
    assert event["z"] == pytest.approx(event["height"] / event["sigma"])
    area = (values - calm)[300 : 300 + length].sum()
    assert event["excess_area"] == pytest.approx(area, abs=0.1 * length)
    assert abs(event["residual"]) < 0.03


def test_residual_is_what_stays() -> None:
    values = falling()
    values[300:320] += 2
    values[320:] += 0.06
    assert only(find_spikes(frame(values)))["residual"] == pytest.approx(0.06, abs=0.025)


@pytest.mark.parametrize("length", [1, 2])
def test_short_events_are_fast(length: int) -> None:
    values = falling()
    values[300 : 300 + length] += 2
    event = only(find_spikes(frame(values)))
    assert event["channel"] == "fast" and event["points"] == length
    assert event["onset"] == 300 and event["end"] == 300 + length and np.isnan(event["residual"])


def test_event_at_the_end_of_the_log_is_censored() -> None:
    values = falling(400)
    values[380:] += 2
    event = only(find_spikes(frame(values)))
    assert event["channel"] == "sustained" and event["censored"] and event["points"] == 20
    assert event[["end", "recovery", "end_tokens", "recovery_tokens"]].isna().all()
    assert event["excess_area"] == pytest.approx(40, abs=1) and np.isnan(event["residual"])
    values = falling(400)
    values[-1] += 2
    event = only(find_spikes(frame(values)))
    assert event["channel"] == "fast" and event["censored"]


def test_long_spike_does_not_eat_its_own_baseline() -> None:
    values = falling(900)
    values[300:700] += 2  # three windows long
    event = only(find_spikes(frame(values)))
    assert (event["onset"], event["end"]) == (300, 700)


def test_creeping_rise_is_one_event() -> None:
    values = falling(900)
    values[300:700] += np.interp(np.arange(400), [0, 60, 340, 399], [0, 3, 3, 0])
    event = only(find_spikes(frame(values)))
    assert 300 <= event["onset"] <= 340 and 660 <= event["end"] <= 705


def test_constant_log_has_no_spread_and_no_events() -> None:
    values = np.full(400, 3.0)
    assert find_spikes(frame(values)).empty
    values[200:220] = 3.1  # below the floor of 5 %
    assert find_spikes(frame(values)).empty
    values[200:220] = 4.0
    event = only(find_spikes(frame(values)))
    assert event["sigma"] == 0 and np.isnan(event["z"]) and event["height"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_falling_noisy_logs_have_no_sustained_events(seed: int) -> None:
    found = find_spikes(frame(falling(3000, noise=0.05, seed=seed)))
    assert (found["channel"] != "sustained").all()


def test_values_that_are_not_finite_are_ignored_and_counted() -> None:
    values = falling()
    values[[5, 100, 250]] = np.nan, np.inf, np.nan
    values[300:320] += 2
    values[305] = np.nan
    found = find_spikes(frame(values))
    event = only(found)
    assert (event["onset"], event["end"], event["points"]) == (300, 320, 19)
    assert found.attrs["spikes"]["a"]["nonfinite"] == 4


def test_samples_without_a_baseline_are_not_judged() -> None:
    values = falling(200)
    values[20:28] += 3
    found = find_spikes(frame(values), window=128)
    assert found.empty
    assert found.attrs["spikes"]["a"] == {
        "judged": 168, "unjudged": 32, "nonfinite": 0, "window": 128, "inherited": 0,
    }  # fmt: skip
    assert only(find_spikes(frame(values), minimum=10))["onset"] == 20


def test_short_logs_get_a_shorter_window() -> None:
    for size, window in ((10, 16), (65, 16), (400, 100), (512, 128), (5000, 128)):
        found = find_spikes(frame(falling(size)))
        assert found.attrs["spikes"]["a"]["window"] == window
    values = 5.5 * np.exp(-np.arange(60) / 4) + 1.6  # an evaluation every now and then
    values[33:36] += [0.6, 1.0, 0.9]
    event = only(find_spikes(frame(values)))
    assert event["channel"] == "sustained" and (event["onset"], event["end"]) == (33, 36)


def test_branch_has_its_parent_as_history() -> None:
    values = falling()
    spiked = values[300:400].copy()
    spiked[2:30] += 2
    log = pd.concat([frame(values, "normal"), frame(spiked, "spike", "normal", 300)])
    event = only(find_spikes(log))
    assert event["branch"] == "spike" and (event["onset"], event["end"]) == (302, 330)
    alone = find_spikes(log[log["branch"] == "spike"])
    assert alone.empty and alone.attrs["spikes"]["spike"]["unjudged"] == 8


def test_events_of_the_parent_are_not_counted_again() -> None:
    values = falling()
    values[100:120] += 2
    values[290:340] += 2  # under way at the fork
    log = pd.concat([frame(values, "a"), frame(values[300:], "b", "a", 300)])
    found = find_spikes(log)
    assert found["branch"].tolist() == ["a", "a"] and found["onset"].tolist() == [100, 290]
    assert found.attrs["spikes"]["b"]["inherited"] == 1


def test_history_goes_through_grandparents_and_stops_at_circles() -> None:
    values = falling()
    spiked = values[300:].copy()
    spiked[:20] += 2
    a, c = frame(values[:250], "a"), frame(spiked, "c", "b", 300)
    for b in (frame(values[250:], "b", "a", 250), frame(values[300:], "b", "a", 300)):
        event = only(find_spikes(pd.concat([a, b, c])))
        assert event["branch"] == "c" and event["onset"] == 300
    circle = pd.concat([frame(values, "x", "y"), frame(values, "y", "x")])
    assert find_spikes(circle).empty


def test_event_among_the_first_samples_that_can_be_judged() -> None:
    values = np.full(100, 3.0)
    values[2:12] = 6.0
    event = only(find_spikes(frame(values), minimum=2))
    assert (event["onset"], event["end"], event["baseline"]) == (2, 12, 3.0)


def test_any_scale_and_column() -> None:
    values = falling()
    values[300:320] += 2
    log = frame(values).assign(grad_norm=values * 7)
    one, other = only(find_spikes(log)), only(find_spikes(log, column="grad_norm"))
    assert one["onset"] == other["onset"] and other["height"] == pytest.approx(7 * one["height"])


def test_block_borders_do_not_matter() -> None:
    values = falling(9000)
    for start in (4090, 5000, 8191):  # across the first border, inside, up to the second
        values[start : start + 15] += 2
    found = find_spikes(frame(values))
    assert found["onset"].tolist() == [4090, 5000, 8191]
    assert found["points"].between(14, 16).all()
    assert set(found["channel"]) == {"sustained"}


@pytest.mark.parametrize(
    "settings", [{"window": 2}, {"smooth": 4}, {"threshold": 0}, {"floor": -1}, {"minimum": 1}]
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(LogError, match="allowed are"):
        find_spikes(frame(falling(50)), **settings)


def test_frames_that_are_no_log() -> None:
    log = frame(falling(50))
    with pytest.raises(LogError, match="columns .'grad_norm'. are missing"):
        find_spikes(log, column="grad_norm")
    with pytest.raises(LogError, match="'branch' is not numeric"):
        find_spikes(log, column="branch")
    with pytest.raises(LogError, match="50 rows repeat a step"):
        find_spikes(pd.concat([log, log]))
    with pytest.raises(LogError, match="1 rows have no step"):
        find_spikes(log.assign(step=log["step"].where(log["step"] > 0)))
