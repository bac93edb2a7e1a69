"""What trainers print, beside the rows that every format has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis360.errors import LogError
from analysis360.logs import formats, parse_log, read_loss


def log(folder: Path, text: str) -> Path:
    path = folder / "console.log"
    path.write_text(text, encoding="utf-8")
    return path


def test_gpt_neox_has_cells_before_the_iteration_and_megatron_validations(tmp_path: Path) -> None:
    text = (
        " samples/sec: 7.799 | iteration       34/   10000 | elapsed time per iteration (ms): 4103.1 "
        "| learning rate: 2.111E-06 | approx flops per GPU: 112.9TFLOPS | lm_loss: 1.118665E+01 | "
        "number of skipped iterations:   0 | number of nan iterations:   0 |\n"
        "time (ms) | forward: 659.86 | backward: 2164.69 | optimizer: 1172.51\n"
        "0: validation loss at iteration 34 | lm loss value: 1.2E+01 | lm loss PPL: 1.6E+05 |\n"
        "validation loss at iteration 34 on test set | lm loss value: 9.0E+00 | lm loss PPL: 8E+03 |\n"
        " iteration       35/   10000 | learning rate: 2.173E-06 | loss scale: 2.0 | number of skipped iterations:   1 |\n"
        " iteration       36/   10000 | learning rate: 2.173E-06 | lm loss: NAN | grad norm: inf |\n"
        " validation loss at iteration 99 | lm loss value: 1.0E+00 |\n"
    )
    frame = read_loss(log(tmp_path, text))
    assert frame["step"].tolist() == [34, 35, 36]
    np.testing.assert_array_equal(frame["loss"], [11.18665, np.nan, np.nan])
    np.testing.assert_array_equal(frame["val_loss"], [12.0, np.nan, np.nan])
    assert frame["lr"].tolist() == [2.111e-06, 2.173e-06, 2.173e-06]
    assert frame["samples/sec"][0] == 7.799 and frame["approx flops per GPU"][0] == 112.9
    assert frame["grad_norm"][2] == np.inf and frame.attrs["log"]["dropped_rows"] == 1


def test_torchtitan_validations(tmp_path: Path) -> None:
    text = (
        "[rank0]:[titan] 2025-06-16 22:30:48,735 - root - INFO - step: 1,000  loss:  6.1384  tps: 5,856\n"
        "[rank0]:[titan] 2025-06-16 22:30:49,735 - root - INFO - validate step: 1000  loss:  6.25  tps: 9,856\n"
        "[rank0]:[titan] 2025-06-16 22:30:50,735 - root - INFO - step: 1010  loss: nan  tps: 5,856\n"
    )
    frame = read_loss(log(tmp_path, text))
    assert frame["step"].tolist() == [1000, 1010] and frame["tps"].tolist() == [5856, 5856]
    np.testing.assert_array_equal(frame["loss"], [6.1384, np.nan])
    np.testing.assert_array_equal(frame["val_loss"], [6.25, np.nan])


def test_olmo_core_has_an_eta_and_markers_without_metrics(tmp_path: Path) -> None:
    text = (
        "2025-05-01T10:00:00\tINFO\tolmo_core.train\t[step=4/100,epoch=1]\n"
        "2025-05-01T10:00:01\tINFO\tolmo_core.train\t[step=5/???,epoch=1,eta=1 day3:04:05]\n"
        "    train/CE loss=10.42\n    train/PPL=33,523\n    optim/total grad norm=1.500\n"
        "    optim/LR (group 0)=3.00E-05\n"
        "2025-05-01T10:00:02\tINFO\tolmo_core.eval\t[step=5/100,epoch=1]\n"
        "    eval/lm/c4/CE loss=10.5\n"
    )
    frame = read_loss(log(tmp_path, text))
    assert frame[["step", "loss", "grad_norm", "lr"]].iloc[0].tolist() == [5, 10.42, 1.5, 3e-5]
    assert frame["train/PPL"][0] == 33523 and frame["eval/lm/c4/CE loss"][0] == 10.5
    assert len(frame) == 1


def test_deepspeed_without_its_pipeline_engine_prints_no_loss(tmp_path: Path) -> None:
    text = "[2022-03-11 02:06:58,985] [INFO] [Rank 0] step=40, skipped=2, lr=[5e-05], mom=[[0.9]]\n"
    with pytest.raises(LogError, match="tells no loss .only its pipeline engine"):
        read_loss(log(tmp_path, text))


def test_progress_bars_and_stray_bytes_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(
        b"  8%|\xe2\x96\x88\xff   | 1/9\rsteps: 1 loss: 2.5 iter time (s): 0.1 samples/sec: 8.0\r\n"
        b"\r 20%|  | 2/9\rsteps: 2 loss: inf iter time (s): 0.1 samples/sec: 8.0\r\n"
    )
    assert read_loss(path)["loss"].tolist() == [2.5, np.inf]


def test_a_format_of_ones_own(tmp_path: Path) -> None:
    """One entry in the table is all it takes."""
    from analysis360.logs.source import LogFormat, Source, as_frame

    def read(source: Source):  # type: ignore[no-untyped-def]
        lines = source.text.splitlines()[1:]
        return as_frame(
            {n: dict(zip(("step", "loss"), line.split())) for n, line in enumerate(lines, 2)}
        )

    mine = LogFormat("mine", "my trainer's", lambda s: s.first_line == "MINE", read)
    formats.add("mine", mine)
    try:
        frame = read_loss(log(tmp_path, "MINE\n1 2.5\n2 2.25\n"))
    finally:
        formats.remove("mine")
    assert frame["loss"].tolist() == [2.5, 2.25]
    with pytest.raises(LogError, match="none of these"):
        parse_log(log(tmp_path, "MINE\n1 2.5\n"))
