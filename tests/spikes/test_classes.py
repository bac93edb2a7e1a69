"""What became of a spike, by the stated rules."""

from __future__ import annotations

import numpy as np
import pytest

from analysis360.spikes import find_spikes
from tests.spikes.logs import falling, frame


@pytest.mark.parametrize(
    ("length", "stays", "size", "kind", "reason"),
    [
        (1, 0.0, 900, "neutral", "over after 1 steps"),
        (50, 0.0, 900, "benign", "lasted 50 steps (limit 100)"),
        (99, 0.0, 900, "benign", "lasted 99 steps"),
        (100, 0.0, 900, "malignant", "lasted 100 steps (limit 100)"),
        (50, 0.12, 900, "malignant", "stays 0.1"),
        (600, 0.0, 350, "malignant", "cut: the log ends 49 steps after the onset"),
        (1200, 0.0, 1500, "catastrophic", "no end within 1199 steps (limit 1000)"),
        (50, 0.0, 365, "", "too few samples follow"),
    ],
)
def test_each_class(length: int, stays: float, size: int, kind: str, reason: str) -> None:
    values = falling(1500)
    values[300 : 300 + length] += 2
    values[300 + length :] += stays
    event = find_spikes(frame(values[:size])).iloc[0]
    assert event["class"] == kind and reason in event["class_reason"]


def test_a_spike_that_came_half_way_back_is_no_catastrophe() -> None:
    values = falling(1600)
    values[300:] += np.interp(np.arange(1300), [0, 400], [3, 1.0])
    event = find_spikes(frame(values)).iloc[0]
    assert event["censored"] and event["class"] == "malignant"


def test_only_losses_have_classes() -> None:
    values = falling()
    values[300:320] += 2
    found = find_spikes(frame(values).assign(grad_norm=values), column="grad_norm")
    assert found["class"].tolist() == [""]
    assert found["class_reason"].tolist() == ["classes are of losses"]
