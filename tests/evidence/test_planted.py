"""A fault planted in a small run is found, and a null fork fits nothing: from training to verdict."""

from __future__ import annotations

import dataclasses

import pytest

import analysis360 as a360

torch = pytest.importorskip("torch")

from analysis360.demo import TINY, train_forks  # noqa: E402
from analysis360.stats import DEFAULT  # noqa: E402

CONFIG = dataclasses.replace(
    TINY, layers=1, chunk_steps=40, trunk_chunks=3, total_chunks=4, return_chunk=4,
    dense=(10, 20), heldout_every=40, heldout_windows=4, bench_windows=4,
)  # fmt: skip


def high_rate(now):
    now.lr *= 4


@pytest.mark.slow
def test_a_planted_rate_is_found_and_a_null_fork_fits_nothing(tmp_path):
    forks = {"pa": (6,), "pb": (7,), "null": (8,), "hot": (9,)}
    folder = train_forks(tmp_path / "run", CONFIG, forks, faults={"hot": high_rate}, progress=False)
    run = a360.open_run(folder)
    made = a360.plan(
        run, (*DEFAULT, *a360.EVIDENCE_STATISTICS), against=("previous", "partner", "ancestor")
    )
    made.run(tmp_path / "measured", progress=False)
    table = a360.load_table(tmp_path / "measured")
    loss = a360.read_loss(run)
    for known in (loss.drop(columns="lr"), loss):
        said = {}
        for branch in ("null", "hot"):
            found = a360.weigh_evidence(table, branch, placebos=("pa", "pb"), loss=known)
            said[branch] = a360.evidence_matrix(found).set_index("mechanism")["verdict"]
        assert said["hot"]["M8"] == "for"
        assert "for" not in set(said["null"])
