"""Synthetic training logs with planted spikes, whose noise is that of real logs. Frozen.

Made and committed before the detector was tuned on it, and not to be touched when it is: the
benchmark asserts `CHECKSUM`. What is planted, with all numbers drawn anew for each log:

- **baseline**: ``L + A (t + t0)^-p``, falling by a power law over 4,000 to 8,000 steps;
- **noise**: blocks of 64 successive residuals of one of three real logs around their own running
  median of 101 samples, without their first tenth and without the known spikes of the spiky twin.
  Outliers of the data are left in, since real logs have them: an alarm at one is a false alarm;
- **spikes**: 2 to 6 with heights of 0.1 to 5 nats and durations of 1 to 2,000 steps, both
  log-uniform, at least 300 steps apart; half rise at once, the others over up to 30 % of their
  duration; half fall in a line to half their height and break off, the others decay
  exponentially to a tenth;
- **restarts**: in every third log the run goes back 50 to 500 steps and on with other noise; in
  half of these because of a spike, whose rows the log still has.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

LOGS, SEED, BLOCK = 200, 20260, 64
GAP, TREND = 300, 101
MAD_TO_SIGMA = 1.4826

CHECKSUM = "321054efddc7a28f45d397f86443e4a9551dd2ca9679d267f9477d8f752d406c"
"""SHA-256 of all losses, in whole micronats, and of the places of the spikes, in order."""


@dataclass(frozen=True)
class Noise:
    """Residuals of one real log, and the places where a block may begin."""

    name: str
    values: np.ndarray
    starts: np.ndarray

    @property
    def sigma(self) -> float:
        middle = np.median(self.values)
        return float(MAD_TO_SIGMA * np.median(np.abs(self.values - middle)))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        at = rng.choice(self.starts, size=-(-n // BLOCK))
        return self.values[at[:, None] + np.arange(BLOCK)].ravel()[:n]


@dataclass(frozen=True)
class Log:
    """Rows as the run logged them, and what is planted: branch, start, stop, height."""

    number: int
    noise: str
    sigma: float
    rows: pd.DataFrame
    planted: pd.DataFrame


def real_noise(folder: Path) -> list[Noise]:
    """Read the three real logs; an error says what is not there."""
    paths = {
        "spiky": folder / "wmt_transformer_spiky/measurements.csv",
        "normal": folder / "wmt_transformer_normal/measurements.csv",
        "gpt2": folder / "gpt2_124m/main.log",
    }
    known = folder / "reference_segmentation.json"
    absent = [str(path) for path in (*paths.values(), known) if not path.is_file()]
    if absent:
        raise SystemExit(f"the real logs are not all there; missing are {', '.join(absent)}")
    events = json.loads(known.read_text())["ap_t1_spiky_s2"]
    return [
        _noise("spiky", *_csv(paths["spiky"]), [(e["onset"], e["recovery"]) for e in events]),
        _noise("normal", *_csv(paths["normal"]), []),
        _noise("gpt2", *_llmc(paths["gpt2"]), []),
    ]


def _csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    return (
        np.array([int(row["global_step"]) for row in rows]),
        np.array([float(row["loss"]) for row in rows]),
    )


def _llmc(path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = re.findall(r"^s:(\d+) trl:([\d.]+)", path.read_text(), flags=re.MULTILINE)
    return np.array([int(a) for a, _ in found]), np.array([float(b) for _, b in found])


def _noise(name: str, step: np.ndarray, loss: np.ndarray, events: list[tuple[int, int]]) -> Noise:
    trend = pd.Series(loss).rolling(TREND, center=True).median().to_numpy()
    calm = np.isfinite(trend)
    calm[: len(loss) // 10] = False
    width = 5 * int(np.median(np.diff(step)))
    for onset, over in events:
        calm &= (step < onset - width) | (step > over + width)
    # the trend beside a long event is its own, so what remains is still a residual
    whole = np.lib.stride_tricks.sliding_window_view(calm, BLOCK).all(axis=1)
    values = np.where(calm, loss - trend, 0.0)
    starts = np.flatnonzero(whole)
    # centre and scale are those of the samples that can be drawn
    usable = np.zeros(len(loss), dtype=bool)
    for at in starts:
        usable[at : at + BLOCK] = True
    first = np.cumsum(usable) - 1
    return Noise(name, values[usable], first[starts])


def spike_shape(height: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Excess over the baseline at each step of a spike; its largest value is `height`."""
    rise = int(length * rng.uniform(0, 0.3)) if rng.random() < 0.5 else 0
    fall = length - rise
    line = np.linspace(1.0, 0.5, fall) if rng.random() < 0.5 else np.geomspace(1.0, 0.1, fall)
    up = np.arange(1, rise + 1) / (rise + 1)
    return height * np.concatenate([up, line])


def _baseline(n: int, rng: np.random.Generator) -> np.ndarray:
    floor, power = rng.uniform(1.8, 3.2), rng.uniform(0.2, 0.6)
    begin, early = rng.uniform(4.0, 9.0), rng.uniform(10, 200)
    return floor + (begin - floor) * ((np.arange(n) + early) / early) ** -power


def _size(rng: np.random.Generator) -> tuple[float, int]:
    height = float(np.exp(rng.uniform(np.log(0.1), np.log(5.0))))
    return height, round(float(np.exp(rng.uniform(np.log(1), np.log(2000)))))


def _places(n: int, rng: np.random.Generator) -> list[tuple[int, int, float]]:
    """Start, stop and height of spikes that lie `GAP` apart, in order."""
    wanted = [_size(rng) for _ in range(rng.integers(2, 7))]
    kept: list[tuple[float, int]] = []
    for height, length in wanted:
        if sum(d for _, d in kept) + length + GAP * (len(kept) + 2) <= n:
            kept.append((height, length))
    spare = n - GAP - sum(length + GAP for _, length in kept)
    gaps = np.sort(rng.integers(0, spare + 1, len(kept)))
    out, at = [], GAP
    for (height, length), extra in zip(kept, np.diff(gaps, prepend=0), strict=True):
        at += int(extra)
        out.append((at, at + length, height))
        at += length + GAP
    return out


def make_log(number: int, noises: list[Noise]) -> Log:
    """Make one log; the same number and noise give the same log."""
    rng = np.random.default_rng([SEED, number])
    noise = noises[(0, 1, 2, 2)[int(rng.integers(4))]]
    n = int(rng.integers(4000, 8001))
    base = _baseline(n, rng)
    loss = base + noise.draw(n, rng)
    planted = []
    for start, stop, height in _places(n, rng):
        loss[start:stop] += spike_shape(height, stop - start, rng)
        planted.append({"branch": "main", "start": start, "stop": stop, "height": height})
    step = np.arange(n)
    if number % 3 == 0 and (cut := _cut(n, planted, rng)):
        back, over = cut
        gone = base[back:over] + noise.draw(over - back, rng)
        if rng.random() < 0.5:
            height, length = _size(rng)
            seen = min(int(rng.integers(1, 45)), length)
            gone[len(gone) - seen :] += spike_shape(height, length, rng)[:seen]
            high = {"start": over - seen, "stop": over, "height": height}
            planted.append({"branch": "main.cut1", **high})
        loss = np.concatenate([loss[:back], gone, loss[back:]])
        step = np.concatenate([step[:over], step[back:]])
    rows = pd.DataFrame({"step": step, "loss": loss})
    columns = ["branch", "start", "stop", "height"]
    return Log(number, noise.name, noise.sigma, rows, pd.DataFrame(planted, columns=columns))


def _cut(n: int, planted: list[dict], rng: np.random.Generator) -> tuple[int, int] | None:
    """Step to which a run goes back and step at which it does, far from the planted spikes."""
    for _ in range(50):
        over, length = int(rng.integers(1000, n)), int(rng.integers(50, 501))
        back = over - length
        if all(over < p["start"] or back - GAP > p["stop"] for p in planted):
            return back, over
    return None


def make_logs(folder: Path, count: int = LOGS) -> list[Log]:
    """Make all logs from the real ones in `folder`."""
    noises = real_noise(folder)
    return [make_log(number, noises) for number in range(count)]


def checksum(logs: list[Log]) -> str:
    """SHA-256 of the losses in whole micronats, so that the last bit of a float does not matter."""
    done = hashlib.sha256()
    for log in logs:
        done.update(np.round(log.rows["loss"].to_numpy() * 1e6).astype("<i8").tobytes())
        done.update(log.planted[["start", "stop"]].to_numpy(dtype="<i8").tobytes())
    return done.hexdigest()
