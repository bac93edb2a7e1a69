"""TensorBoard's event files: nothing is sampled, nothing a restart overwrote is thrown away."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from analysis360.errors import LogError
from analysis360.logs import read_loss
from tests.logs.samples import ROWS, write_sample

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


@pytest.mark.slow  # checksums in Python
def test_every_point_is_read_where_the_accumulator_samples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [(step, 1 / step, 1.0) for step in range(1, 10_501)]
    path = write_sample("tensorboard", tmp_path, rows)
    frame = read_loss(path)
    assert frame["step"].tolist() == list(range(1, 10_501))
    np.testing.assert_array_equal(frame["loss"], np.float32(1 / frame["step"].to_numpy(float)))
    assert len(EventAccumulator(str(path)).Reload().Scalars("train/CE loss")) == 10_000


def test_files_of_a_folder_are_one_log_in_order_of_time(tmp_path: Path) -> None:
    first = write_sample("tensorboard", tmp_path, ROWS[:5])
    first.rename(tmp_path / "events.out.tfevents.1700000000.a.1.0")
    write_sample("tensorboard", tmp_path, ROWS[5:]).rename(
        tmp_path / "events.out.tfevents.1700009999.a.1.0"
    )
    frame = read_loss(tmp_path)
    assert frame.attrs["log"]["restarts"] == 1 and len(frame) == len(ROWS)


def test_folders_of_several_runs_are_named(tmp_path: Path) -> None:
    for run in ("a", "b"):
        write_sample("tensorboard", tmp_path / run)
    with pytest.raises(LogError, match=r"several runs, in \['a', 'b'\]; pass one"):
        read_loss(tmp_path)
    assert len(read_loss(tmp_path / "a")) == len(ROWS)


def test_a_damaged_record_is_named_though_the_loader_says_nothing(tmp_path: Path) -> None:
    path = write_sample("tensorboard", tmp_path)
    data = bytearray(path.read_bytes())
    at = 0
    for _ in range(4):
        at += 16 + struct.unpack_from("<Q", data, at)[0]
    data[at + 14] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"record 4 of 19 is damaged"):
        read_loss(path)


def test_steps_at_which_only_other_tags_were_logged_are_no_nan(tmp_path: Path) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    points = [("lr", 1), ("lr", 2), ("loss", 2), ("lr", 3), ("lm loss vs samples", 4096), ("lr", 4), ("loss", 4)]  # fmt: skip
    path = tmp_path / "events.out.tfevents.1.a"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(event_pb2.Event(wall_time=1, file_version="brain.Event:2").SerializeToString())
        for tag, step in points:
            one = summary_pb2.Summary.Value(tag=tag, simple_value=step)
            event = event_pb2.Event(wall_time=2, step=step, summary={"value": [one]})
            writer.write(event.SerializeToString())
    frame = read_loss(path)
    assert frame["step"].tolist() == [2, 4] and frame["lr"].tolist() == [2.0, 4.0]
    assert frame.attrs["log"]["nan_loss"] == 0 and frame.attrs["log"]["restarts"] == 0


def test_no_scalar_is_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="the log is empty: its event files hold no scalar"):
        read_loss(write_sample("tensorboard", tmp_path, []))


@pytest.mark.slow  # loads torch
def test_what_torch_writes(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for new_style, folder in ((False, "old"), (True, "new")):
        with SummaryWriter(str(tmp_path / folder)) as writer:
            for step, loss, norm in ROWS:
                writer.add_scalar("Loss/train", loss, step, new_style=new_style)
                writer.add_scalar("grad_norm", norm, step, new_style=new_style)
                writer.add_histogram("weights", np.arange(4), step)
        frame = read_loss(tmp_path / folder)
        assert frame["loss"].tolist()[:6] == [9.5, 8.25, 7.75, 7.5, 7.25, 7.125]
        assert frame["grad_norm"].tolist()[6:] == [2.0, 700.5, 3.5]
