"""Weights & Biases: offline runs, charts exported as CSV, and the whole history of a server."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis360.errors import LogError
from analysis360.logs import read_loss, wandb_api
from tests.logs.samples import INF, NAN, ROWS, leveldb, write_sample

installed = pytest.mark.skipif(
    not any((Path(p) / "wandb/proto").is_dir() for p in sys.path),
    reason="the extra wandb is not installed",
)

# What `scan_history()` gives: rows of single metrics, with NaN as the server writes it
HISTORY: list[dict[str, Any]] = [
    {"_step": 0, "_timestamp": 1.7e9, "_runtime": 1.0, "train/global_step": 10, "train/loss": 3.5},
    {"_step": 1, "_timestamp": 1.7e9, "_runtime": 2.0, "train/global_step": 10, "eval/loss": 3.6},
    {"_step": 2, "train/global_step": 20, "train/loss": "NaN", "gradients": {"bins": [0.0, 1.0]}},
    {"_step": 3, "train/global_step": 30, "train/loss": "Infinity"},
    {"_step": 4, "train/global_step": 20, "train/loss": 3.25, "train/grad_norm": 0.5},
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that has one run; what was asked of it."""
    asked: list[str] = []

    def fetch(run: str) -> list[dict[str, Any]]:
        asked.append(run)
        return HISTORY if run == "me/project/1abc" else []

    monkeypatch.setattr(wandb_api, "fetch", fetch)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        "wandb://me/project/1abc",
        "https://wandb.ai/me/project/runs/1abc",
        "https://wandb.ai/me/project/runs/1abc/overview?nw=nwuser",
        "https://wandb.my-lab.org/me/project/runs/1abc",
    ],
)
def test_a_run_on_a_server(server: list[str], address: str) -> None:
    frame = read_loss(address, tokens_per_step=100)
    assert server == ["me/project/1abc"]
    main, cut = (frame[frame["branch"] == name] for name in ("main", "main.cut1"))
    assert main["step"].tolist() == [10, 20] and main["loss"].tolist() == [3.5, 3.25]
    np.testing.assert_array_equal(cut["loss"], [NAN, INF])
    assert main["tokens"].tolist() == [1000, 2000] and "gradients" not in frame
    assert frame.attrs["log"]["dropped_rows"] == 1  # the evaluation


def test_a_run_without_history_is_empty(server: list[str]) -> None:
    with pytest.raises(LogError, match="wandb://me/project/other: the log is empty"):
        read_loss("wandb://me/project/other")


def test_the_whole_history_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`scan_history` without keys, which would leave out rows; never `history`, which samples."""

    class Recorded:
        def scan_history(self, *given: object, **named: object) -> Iterator[dict[str, Any]]:
            assert not given and not named
            return iter(HISTORY)

    class Api:
        def run(self, path: str) -> Recorded:
            if path != "me/project/1abc":
                raise ValueError("Could not find run")
            return Recorded()

    module = type(sys)("wandb")
    module.Api = Api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert len(read_loss("wandb://me/project/1abc")) == 4
    with pytest.raises(LogError, match="me/project/x: Weights & Biases gives no history: Could"):
        read_loss("wandb://me/project/x")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loader = "tensorboard.backend.event_processing.event_file_loader"
    for missing in ("wandb", "wandb.proto", loader):
        monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / "run-a.wandb").write_bytes(leveldb([b"x"]))
    events = tmp_path / "events.out.tfevents.1"
    events.write_bytes(b"\x18" + bytes(7) + b"abcd\x09" + bytes(30))
    for source, extra in (
        ("wandb://a/b/c", "wandb"),
        (tmp_path / "run-a.wandb", "wandb"),
        (events, "tensorboard"),
    ):
        with pytest.raises(LogError, match=rf"pip install analysis360\[{extra}\]"):
            read_loss(source)


@pytest.mark.slow  # loads wandb
@installed
def test_the_package_has_what_is_called() -> None:
    import wandb
    from wandb.apis.public import Run

    scan: Callable[..., object] = Run.scan_history
    needed = [
        name
        for name, parameter in inspect.signature(scan).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    assert needed == ["self"] and inspect.signature(Run.history).parameters["samples"].default
    assert "path" in inspect.signature(wandb.Api.run).parameters


@pytest.mark.slow  # runs wandb and its service
@installed
def test_an_offline_run_that_wandb_wrote(tmp_path: Path) -> None:
    program = (
        "import json, sys, wandb\n"
        "run = wandb.init(project='p', dir=sys.argv[1], id='abc', mode='offline',\n"
        "    settings=wandb.Settings(console='off', silent=True, x_disable_stats=True))\n"
        "for n, (step, loss, norm) in enumerate(json.loads(sys.argv[2])):\n"
        "    run.log({'train/global_step': step, 'train/loss': loss, 'train': {'grad_norm': norm},\n"
        "             'note': 'x' * 20_000, 'h': wandb.Histogram([1, 2])}, step=n)\n"
        "    run.log({'val/loss': 1.0}, step=n)\n"
        "run.finish()\n"
    )
    home = {"HOME": str(tmp_path), "WANDB_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    arguments = [sys.executable, "-c", program, str(tmp_path), json.dumps(ROWS)]
    subprocess.run(arguments, check=True, env=os.environ | home, timeout=100, capture_output=True)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    for source in (tmp_path / "wandb", folder, folder / "run-abc.wandb"):
        frame = read_loss(source)
        main, cut = (frame[frame["branch"] == name] for name in ("main", "main.cut1"))
        assert main["loss"].tolist() == [9.5, 8.25, 7.75, 7.5, 7.25, 7.125]
        np.testing.assert_array_equal(cut["loss"], [NAN, INF, 9.125])
        assert cut["grad_norm"].tolist() == [2.0, 700.5, 3.5]
        assert frame["note"].str.len().eq(20_000).all()  # over the edges of blocks


@pytest.mark.slow  # loads wandb
@installed
def test_folders_of_one_run_are_joined_and_those_of_several_named(tmp_path: Path) -> None:
    for time, rows in (("20240101_000000", ROWS[:5]), ("20240102_000000", ROWS[5:])):
        write_sample("wandb_offline", tmp_path / f"offline-run-{time}-abc", rows)
    frame = read_loss(tmp_path)
    assert len(frame) == len(ROWS) and frame.attrs["log"]["restarts"] == 1
    other = write_sample("wandb_offline", tmp_path / "run-20240103_000000-def")
    other.rename(other.parent / "run-def.wandb")
    with pytest.raises(LogError, match=r"several runs, \[.*run-abc\.wandb.*run-def\.wandb"):
        read_loss(tmp_path)


@pytest.mark.slow  # loads wandb
@installed
def test_a_damaged_offline_run_names_the_byte(tmp_path: Path) -> None:
    path = write_sample("wandb_offline", tmp_path)
    data = bytearray(path.read_bytes())
    data[7 + 6] = 9  # the kind of the first record
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"damaged at byte 7: no record begins there"):
        read_loss(path)


def test_runs_side_by_side_become_branches(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(
        '"Step","a - b - train/loss","a - b - train/loss__MIN","a - b - train/loss__MAX",'
        '"c - train/loss","c - train/loss__MIN","c - train/loss__MAX"\n'
        '"10","3.5","3.5","3.5","","",""\n"20","3.25","3","3.5","4.5","4.5","4.5"\n'
        '"30","","","","4.25","4.25","4.25"\n'
    )
    frame = read_loss(path)
    assert frame["branch"].tolist() == ["a - b", "a - b", "c", "c"]
    assert frame["step"].tolist() == [10, 20, 20, 30]
    assert frame["loss"].tolist() == [3.5, 3.25, 4.5, 4.25]
    assert frame["binned"].tolist() == [0, 1, 0, 0]  # the mean of a bin, not a loss
