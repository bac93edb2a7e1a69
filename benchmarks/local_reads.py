"""Reading local files into reused buffers: pread against mmap, with and without advice.

Each way has the same work: every byte of the file, in order, block by block, is brought to where
arithmetic can take it, and summed once. Ways are interleaved, medians are printed, and each way's
time over that of the first. "cold" drops the file from the page cache before each round (Linux).

    python benchmarks/local_reads.py [--folder DIR] [--mb 512] [--rounds 5]
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from analysis360.storage.local import LocalStore

BLOCK = 8 << 20


def total(view: memoryview | np.ndarray) -> int:
    return int(np.frombuffer(view, np.uint64).sum(dtype=np.uint64))


def pread(path: Path, size: int, threads: int = 1, advice: int | None = None) -> int:
    """`LocalStore.read_into`, one buffer a thread."""
    store = LocalStore(path)
    if advice is not None:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, size, advice)

    def part(thread: int) -> int:
        buffer = memoryview(BUFFERS[thread])
        found = 0
        for low in range(thread * BLOCK, size, threads * BLOCK):
            store.read_into(path.name, low, buffer)
            found += total(buffer)
        return found

    with ThreadPoolExecutor(threads) as pool:
        found = sum(pool.map(part, range(threads)))
    store.close()
    return found


def pread_ahead(path: Path, size: int) -> int:
    """As `pread`, and the next blocks announced by WILLNEED."""
    store, found = LocalStore(path), 0
    with open(path, "rb") as file:
        for low in range(0, size, BLOCK):
            os.posix_fadvise(file.fileno(), low + BLOCK, 4 * BLOCK, os.POSIX_FADV_WILLNEED)
            store.read_into(path.name, low, memoryview(BUFFERS[0]))
            found += total(memoryview(BUFFERS[0]))
    store.close()
    return found


def mapped(path: Path, size: int, copy: bool, advice: int | None = None) -> int:
    """A map of the file, copied to the buffer block by block or summed in place."""
    found = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as place:
        if advice is not None:
            place.madvise(advice)
        whole = np.frombuffer(place, np.uint8)
        for low in range(0, size, BLOCK):
            block = whole[low : low + BLOCK]
            if copy:
                np.copyto(np.frombuffer(BUFFERS[0], np.uint8), block)
                found += total(memoryview(BUFFERS[0]))
            else:
                found += total(block)
        del whole, block
    return found


# Page-aligned, as the engine's are: into others the kernel copies four times slower here
BUFFERS = [mmap.mmap(-1, BLOCK) for _ in range(2)]
WAYS: dict[str, Callable[[Path, int], int]] = {
    "pread": pread,
    "pread, 2 threads": lambda p, n: pread(p, n, threads=2),
    "pread, SEQUENTIAL": lambda p, n: pread(p, n, advice=os.POSIX_FADV_SEQUENTIAL),
    "pread, WILLNEED ahead": pread_ahead,
    "mmap, copied": lambda p, n: mapped(p, n, copy=True),
    "mmap, in place": lambda p, n: mapped(p, n, copy=False),
    "mmap, in place, SEQUENTIAL": lambda p, n: mapped(
        p, n, copy=False, advice=mmap.MADV_SEQUENTIAL
    ),
}


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="on the disk that is to be measured")
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    size = max(asked.mb * 10**6 // BLOCK, 2) * BLOCK
    print(f"{platform.platform()}, {os.cpu_count()} cores, {size / 1e6:.0f} MB a file")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder, "a.bin")
        rng = np.random.default_rng(0)
        with path.open("wb") as file:
            for _ in range(size // BLOCK):
                file.write(rng.bytes(BLOCK))
        for state in ("cached", "cold"):
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            sums = set()
            for turn in range(asked.rounds):
                names = list(WAYS)
                for way in names[turn % len(names) :] + names[: turn % len(names)]:
                    if state == "cold":
                        forget(path)
                    start = time.perf_counter()
                    sums.add(WAYS[way](path, size) % 2**64)
                    seconds[way].append(time.perf_counter() - start)
            assert len(sums) == 1, "ways disagree about the bytes"
            first = statistics.median(seconds["pread"])
            print(f"{state:8}{'GB/s':>28}{'time / pread':>14}")
            for way, taken in seconds.items():
                mid = statistics.median(taken)
                print(f"  {way:28}{size / mid / 1e9:6.2f}{mid / first:14.2f}")


if __name__ == "__main__":
    main()
