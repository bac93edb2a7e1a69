"""One log of each format, with the same rows: a NaN, an infinity and a restart in each.

What a console prints is in the form of real lines (torchtitan's and OLMo's issues, GPT-NeoX's and
Megatron-LM's logs); event files and offline runs are written with their own packages' messages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

NAN, INF = float("nan"), float("inf")
ROWS = [  # step, loss, gradient norm
    (1, 9.5, 1.5), (2, 8.25, 1.25), (3, NAN, 2.0), (4, INF, 700.5), (5, 9.125, 3.5),
    (3, 7.75, 1.125), (4, 7.5, 1.0), (5, 7.25, 0.875), (6, 7.125, 0.75),
]  # fmt: skip
LR = 0.0005

Row = tuple[int, float, float]


def delimited(path: Path, rows: list[Row]) -> None:
    lines = [f"{step},{loss},{norm},{LR}" for step, loss, norm in rows]
    path.write_text("\n".join(["iteration,train/loss,grad_norm,lr", *lines, ""]))


def records(rows: list[Row]) -> list[dict[str, float]]:
    return [{"step": s, "loss": x, "grad_norm": g, "learning_rate": LR} for s, x, g in rows]


def jsonlines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records(rows)))


def trainer_state(path: Path, rows: list[Row]) -> None:
    state = {"epoch": 1.0, "global_step": 6, "log_history": records(rows), "max_steps": 9}
    path.write_text(json.dumps(state, indent=2) + "\n")


def llmc(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(f"s:{s} trl:{x:.6f} lr:{LR:.6f} norm:{g:.6f}\n" for s, x, g in rows))


def megatron(path: Path, rows: list[Row]) -> None:
    lines = [
        "[default7]:using world size: 480, data-parallel-size: 15",
        "[2023-07-25 21:03:21,037] [INFO] [logging.py:96:log_dist] [Rank 0] step=1, skipped=0, lr=[2.1e-06], mom=[[0.9, 0.95]]",
    ]
    for step, loss, norm in rows:
        lines.append(
            f" [2024-01-02 03:04:05] iteration {step:8d}/  338760 | consumed samples: {step * 2040:12d} | "
            f"elapsed time per iteration (ms): 4103.1 | learning rate: {LR:.3E} | global batch size:  2040 | "
            f"lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: {norm:.3f} | "
            "number of skipped iterations:   0 | number of nan iterations:   0 |"
        )
    path.write_text("\n".join([*lines, ""]))


def deepspeed(path: Path, rows: list[Row]) -> None:
    lines = []
    for step, loss, _ in rows:
        lines.append(
            f"[2022-03-11 02:06:58,985] [INFO] [logging.py:69:log_dist] [Rank 0] step={step}, skipped=2, lr=[{LR}, {LR}], mom=[[0.9, 0.999]]"
        )
        lines.append(f"steps: {step} loss: {loss:0.4f} iter time (s): 0.123 samples/sec: 208.130")
    path.write_text("\n".join([*lines, ""]))


def torchtitan(path: Path, rows: list[Row]) -> None:
    lines = ["[rank0]:[titan] 2025-06-16 22:30:48,735 - root - INFO - Training starts at step 1"]
    for step, loss, norm in rows:
        line = (
            f"[rank0]:[titan] 2025-06-16 22:30:50,322 - root - INFO - \x1b[31mstep: {step:2}  \x1b[32mloss: {loss:8.5f}  "
            f"\x1b[38;2;180;60;0mgrad_norm: {norm:7.4f}  \x1b[36mmemory: 49.66GiB(52.28%)  \x1b[34mtps: 5,856  "
            "\x1b[36mtflops: 339.16  \x1b[35mmfu: 34.29%\x1b[39m"
        )
        lines += [line.replace("rank0", "rank1"), line]
    del lines[-2]
    path.write_text("\n".join([*lines, ""]))


def olmo(path: Path, rows: list[Row]) -> None:
    lines = []
    for step, loss, norm in rows:
        lines += [
            f"2024-08-06 09:59:26.181 host:0  olmo.train:908  INFO    [step={step}/739328,epoch=0]",
            f"    optim/total_grad_norm={norm:.5g}",
            f"    train/CrossEntropyLoss={loss:.5g}",
            f"    throughput/total_tokens={step * 4194304:,d}",
            "    System/Peak GPU Memory (MB)=46,911",
        ]
    path.write_text("\n".join([*lines, ""]))


def wandb_export(path: Path, rows: list[Row]) -> None:
    metrics = ["train/global_step", "train/loss", "train/grad_norm"]
    names = [f"my - run - {m}{edge}" for m in metrics for edge in ("", "__MIN", "__MAX")]
    lines = [",".join(f'"{name}"' for name in ["Step", *names])]
    for count, row in enumerate(rows):
        cells = [str(value).replace("inf", "Infinity") for value in row for _ in range(3)]
        lines.append(",".join(f'"{value}"' for value in [str(count), *cells]))
    path.write_text("\n".join([*lines, ""]))


def tensorboard(path: Path, rows: list[Row]) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        first = event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2")
        writer.write(first.SerializeToString())
        for step, loss, norm in rows:
            for tag, value in (("optim/total grad norm", norm), ("train/CE loss", loss)):
                one = summary_pb2.Summary.Value(tag=tag, simple_value=value)
                event = event_pb2.Event(
                    wall_time=1.7e9 + step, step=step, summary=summary_pb2.Summary(value=[one])
                )
                writer.write(event.SerializeToString())


def wandb_offline(path: Path, rows: list[Row]) -> None:
    from wandb.proto import wandb_internal_pb2 as messages

    written = [messages.Record(run=messages.RunRecord(run_id="abc", project="p"))]
    for count, (step, loss, norm) in enumerate(rows):
        record = messages.Record()
        record.history.step.num = count
        pairs = {"_step": count, "train/global_step": step, "train/loss": loss}
        for name, value in pairs.items():
            record.history.item.add(nested_key=[name], value_json=json.dumps(value))
        record.history.item.add(nested_key=["train", "grad_norm"], value_json=json.dumps(norm))
        record.history.item.add(nested_key=["weights"], value_json=json.dumps({"bins": [1, 2]}))
        written.append(record)
    path.write_bytes(leveldb([record.SerializeToString() for record in written]))


def leveldb(records_: list[bytes], block: int = 32768) -> bytes:
    """LevelDB's log, with W&B's header; checksums are left 0, which its reader here ignores."""
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for data in records_:
        began = False
        while True:
            left = block - len(out) % block
            if left < 7:
                out += bytes(left)
                left = block
            piece, data = data[: left - 7], data[left - 7 :]
            kind = {(False, True): 1, (False, False): 2, (True, False): 3, (True, True): 4}
            out += struct.pack("<IHB", 0, len(piece), kind[began, not data]) + piece
            began = True
            if not data:
                break
    return bytes(out)


SAMPLES: dict[str, tuple[str, Callable[[Path, list[Row]], None]]] = {
    "tensorboard": ("events.out.tfevents.1700000000.host.1.0", tensorboard),
    "wandb_offline": ("run-abc.wandb", wandb_offline),
    "trainer_state": ("trainer_state.json", trainer_state),
    "jsonlines": ("metrics.jsonl", jsonlines),
    "llmc": ("main.log", llmc),
    "megatron": ("slurm-1.out", megatron),
    "olmo": ("olmo.log", olmo),
    "torchtitan": ("titan.log", torchtitan),
    "deepspeed": ("deepspeed.log", deepspeed),
    "wandb_export": ("wandb_export_2024-01-01T00_00_00.000+00_00.csv", wandb_export),
    "delimited": ("train.csv", delimited),
}


def write_sample(name: str, folder: Path, rows: list[Row] = ROWS) -> Path:
    """Write the sample of a format, under a name that says nothing where that is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SAMPLES[name][0]
    SAMPLES[name][1](path, rows)
    return path
