"""What the scripts share: child processes watched from outside, medians, a line about the machine.

As a script this is the child: it imports a module, says so, and then does what it is told, one
JSON line each way.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
INTERVAL = 0.004  # seconds between two looks at a child's memory

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_TOKEN": "", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""Environment of children: no look at the real Hub, no token, no proxy to this machine."""


def private_nbytes(pid: int) -> int:
    """Bytes of private memory of a process: anonymous pages, and shared memory in case it hides."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    total = 0
    for name in (b"RssAnon:", b"RssShmem:"):
        _, found, rest = text.partition(name)
        total += int(rest.split(None, 1)[0]) * 1024 if found else 0
    return total


class Watch:
    """Looks at the private memory of a process every few milliseconds while the block runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.peak = max(self.peak, private_nbytes(self.pid))
            self.looks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, private_nbytes(self.pid))


@dataclass
class Done:
    """What a child did: what it said, how long, with how much CPU, and its peak of private memory.

    `peak` is in bytes above the child's baseline, which is taken once, after its imports.
    """

    said: dict[str, Any]
    seconds: float
    cpu: float
    peak: int


class Child:
    """A process that imports `module`, waits, calls its functions when told, and is watched.

    Parameters
    ----------
    module : str
        Its function ``prepare`` is called before the baseline is taken, if it has one.
    env : mapping of str to str, optional
        Over the environment of this process and `QUIET`.
    python : str, optional
        Another interpreter, for a peer that lives in an environment of its own.
    """

    def __init__(
        self, module: str, env: Mapping[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.common", module],
            cwd=ROOT, env={**os.environ, **QUIET, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._answer()
        self.baseline = private_nbytes(self.pid)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with status {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def call(self, function: str, **arguments: Any) -> Done:
        """Call a function of the module; it returns a dict or None."""
        assert self._process.stdin is not None
        with Watch(self.pid) as watch:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        return Done(
            answer["said"], answer["seconds"], answer["cpu"], max(0, watch.peak - self.baseline)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Peer:
    """One of several ways to do the same, measured in turns; the first round is kept apart."""

    name: str
    child: Child
    function: str
    arguments: dict[str, Any]
    rounds: list[Done] = field(default_factory=list)

    def go(self) -> Done:
        done = self.child.call(self.function, **self.arguments)
        self.rounds.append(done)
        return done

    @property
    def warm(self) -> list[Done]:
        return self.rounds[1:] or self.rounds

    def rates(self) -> list[float]:
        """GB/s of each round but the first."""
        return [d.said["nbytes"] / d.seconds / 1e9 for d in self.warm]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates())

    @property
    def cpu(self) -> float:
        """CPU seconds per GB."""
        return statistics.median(d.cpu / d.said["nbytes"] * 1e9 for d in self.warm)

    @property
    def peak(self) -> int:
        return max(d.peak for d in self.rounds)


def in_turns(peers: Sequence[Peer], rounds: int) -> None:
    """One round to warm up, then `rounds` of all peers in turns, so that all share the weather."""
    for number in range(rounds + 1):
        for peer in peers:
            done = peer.go()
            rate = done.said["nbytes"] / done.seconds / 1e9
            progress(f"round {number}: {peer.name}: {done.seconds:.2f} s, {rate:.2f} GB/s")


def compare(peers: Sequence[Peer]) -> str:
    """A Markdown table of peers: rate, time per byte as a multiple of the first's, CPU, memory."""
    lines = [
        "| what | GB/s, median (min–max) | time ÷ first (min–max) | CPU s/GB | peak private MB |",
        "|---|---|---|---|---|",
    ]
    for peer in peers:
        rates, best = peer.rates(), peers[0].rates()
        ratios = [a / b for a, b in zip(best, rates)]  # of the same round
        lines.append(
            f"| {peer.name} | {spread(rates)} | {spread(ratios)} | {peer.cpu:.2f} "
            f"| {peer.peak / 1e6:.0f} |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def progress(text: str) -> None:
    """Say how far it is, aside from the results."""
    print(f"  … {text}", file=sys.stderr, flush=True)


def machine() -> str:
    """One line: processor, cores, memory, versions, date."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    memory = next((int(s.split()[1]) for s in _lines("/proc/meminfo") if "MemTotal" in s), 0)
    load = os.getloadavg()[0]
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "numpy", "huggingface_hub"))
    return (
        f"{time.strftime('%Y-%m-%d')}; {model}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory / 2**20:.0f} GiB; Python {platform.python_version()}, {packages}; "
        f"load before {load:.1f}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def environment(said: Sequence[str] | None) -> dict[str, str]:
    """Read ``--env NAME=VALUE`` options."""
    pairs = (text.partition("=") for text in said or ())
    return {name: value for name, _, value in pairs}


def cpu_seconds() -> float:
    """User and system time of this process, and of the children that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def _child(name: str) -> None:
    """Do what the parent says until it says no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes aside
    module = importlib.import_module(name)
    getattr(module, "prepare", lambda: None)()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        function, arguments = json.loads(line)
        cpu, began = cpu_seconds(), time.perf_counter()
        said = getattr(module, function)(**arguments) or {}
        answer = {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu, "said": said}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _child(sys.argv[1])
