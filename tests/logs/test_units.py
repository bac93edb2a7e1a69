"""Steps, tokens and samples, and where each comes from; restarts as a list."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis360.core import Batch, Checkpoint, Run
from analysis360.errors import LogError, TableError
from analysis360.logs import list_restarts, read_loss
from analysis360.runs import open_run

BATCH = Batch(start=2, stop=8, by=2, samples=30, length=16)


def log(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"loss": [3.0, 2.0], **columns})


def run_with(tmp_path, ratios: list[int | None], batch: Batch | None = None) -> Run:
    points = enumerate(ratios, 1)
    entries = tuple(
        Checkpoint("r", "main", n, n, None if r is None else n * r, "", "", str(n))
        for n, r in points
    )
    (tmp_path / "train.csv").write_text("step,loss\n1,3\n5,2\n")
    return Run("r", "", str(tmp_path), entries, batch=batch, sources={"loss": ("train.csv",)})


def test_what_is_logged_stays() -> None:
    frame = read_loss(
        log(step=[1, 2], tokens=[7, 14], samples=[3, 6]), tokens_per_step=100, sequence_length=10
    )
    assert frame["tokens"].tolist() == [7, 14] and frame["samples"].tolist() == [3, 6]
    assert set(frame["tokens_from"]) == set(frame["samples_from"]) == {"logged"}


def test_what_cannot_be_known_is_missing_and_says_why() -> None:
    frame = read_loss(log(step=[1, 2]))
    assert frame["tokens"].isna().all() and frame["samples"].isna().all()
    assert set(frame["tokens_from"]) == {"not known: no tokens_per_step is given"}
    assert set(frame["samples_from"]) == {"not known: no sequence_length is given"}
    frame = read_loss(log(step=[1, 2]), tokens_per_step=100, sequence_length=30)
    assert frame["samples"].isna().all()
    assert set(frame["samples_from"]) == {
        "not known: 100 tokens per step are no whole number of samples"
    }


def test_each_from_each_other() -> None:
    """With 4 samples of 25 tokens a step: whichever one is logged, all three are the same."""
    steps = np.array([3, 5])
    for logged in ({"step": steps}, {"tokens": steps * 100}, {"samples": steps * 4}):
        frame = read_loss(log(**logged), tokens_per_step=100, sequence_length=25)
        assert frame["step"].tolist() == [3, 5]
        assert frame["tokens"].tolist() == [300, 500]
        assert frame["samples"].tolist() == [12, 20]
    by_tokens = read_loss(log(step=[1, 2], tokens=[100, 225]), sequence_length=50)
    assert by_tokens["samples"][0] == 2 and pd.isna(by_tokens["samples"][1])
    assert by_tokens["samples_from"].tolist()[0] == "tokens / 50"


def test_a_log_without_steps_needs_to_be_told_how() -> None:
    with pytest.raises(LogError, match="no column for the step.*or tokens with tokens_per_step="):
        read_loss(log(tokens=[100, 200]))
    with pytest.raises(LogError, match="row 1: tokens is 150, no multiple of the 100 of a step"):
        read_loss(log(tokens=[100, 150]), tokens_per_step=100)
    with pytest.raises(LogError, match="tokens_per_step=0: expected a whole number from 1 on"):
        read_loss(log(step=[1, 2]), tokens_per_step=0)


def test_a_run_tells_its_tokens_per_step(tmp_path) -> None:
    frame = read_loss(run_with(tmp_path, [64, 64]))
    assert frame["tokens"].tolist() == [64, 320] and set(frame["tokens_from"]) == {"step × 64"}
    frame = read_loss(run_with(tmp_path, [64, 65]))
    assert frame["tokens"].isna().all()
    assert frame["tokens_from"][0].startswith("not known: the run's checkpoints agree on no whole")
    frame = read_loss(run_with(tmp_path, [None]))
    assert frame["tokens_from"][0].startswith("not known: the run's checkpoints have no tokens")


def test_a_batch_that_rose_is_followed(tmp_path) -> None:
    seen, sizes = [0], []  # the oracle: step by step
    while len(seen) < 6:
        stage = min(int(seen[-1] // (30 / 3)), 3)
        sizes.append(2 + 2 * stage)
        seen.append(seen[-1] + sizes[-1])
    frame = read_loss(run_with(tmp_path, [None], BATCH))
    assert frame["samples"].tolist() == [seen[1], seen[5]]
    assert frame["tokens"].tolist() == [seen[1] * 16, seen[5] * 16]
    assert set(frame["tokens_from"]) == {"the run's batch plan"}


def test_the_description_tells_the_sequence_length(tmp_path) -> None:
    (tmp_path / "step_1.pt").touch()
    said = '[checkpoints]\npattern = "step_{step}.pt"\ntokens_per_step = 64\nsequence_length = 16\n'
    (tmp_path / "analysis360.toml").write_text(said + '[sources]\nloss = "train.csv"\n')
    (tmp_path / "train.csv").write_text("step,loss\n1,3\n5,2\n")
    frame = read_loss(open_run(tmp_path))
    assert frame["samples"].tolist() == [4, 20] and set(frame["samples_from"]) == {"step × 4"}


def test_a_loss_frame_that_was_saved_is_read_again(tmp_path) -> None:
    first = read_loss(log(step=[1, 2]), tokens_per_step=4)
    first.to_csv(tmp_path / "saved.csv", index=False)
    again = read_loss(tmp_path / "saved.csv")
    assert list(again) == list(first) and set(again["tokens_from"]) == {"logged"}
    assert again["tokens"].tolist() == [4, 8]


def test_restarts_are_listed() -> None:
    # 1-4, back to 4, then back to 2
    steps = [1, 2, 3, 4, 4, 5, 2, 3]
    found = list_restarts(read_loss(pd.DataFrame({"step": steps, "loss": 1.0}), tokens_per_step=10))
    assert found["branch"].tolist() == ["main", "main"]
    assert found["cut"].tolist() == ["main.cut1", "main.cut2"]
    assert found["segment"].tolist() == [2, 3]
    assert found["step"].tolist() == [4, 2] and found["tokens"].tolist() == [40, 20]
    assert found["lost_from"].tolist() == [4, 2] and found["lost_to"].tolist() == [4, 5]
    assert found["lost_rows"].tolist() == [1, 4]
    assert found["rule"][0].startswith("steps went back to 4: the last written wins")


def test_no_restart_is_an_empty_list() -> None:
    found = list_restarts(read_loss(log(step=[1, 2])))
    assert found.empty and str(found["step"].dtype) == "Int64"
    with pytest.raises(TableError, match="overwritten_by.*pass what read_loss returns"):
        list_restarts(log(step=[1, 2]))
