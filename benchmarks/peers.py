"""What the children of the benchmarks do: analysis360, and the ways that it is compared with.

Each function returns the bytes of tensors that it took in, as ``nbytes``; time, CPU and memory are
taken around and outside of it.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

KEPT: dict[str, Any] = {}
"""What stays between two calls, as it would in a notebook: runs, plans, stores, buffers."""


def prepare() -> None:
    """Import what any of them needs, and let torch set up its arithmetic."""
    import huggingface_hub  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch

    for part in ("engine", "storage", "formats", "stats", "results", "runs"):
        package = importlib.import_module(f"analysis360.{part}")
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            importlib.import_module(f"analysis360.{part}.{module.name}")
    torch.ones(300_000).to(torch.float64).sum()


# analysis360, by its public names


def open_source(source: str) -> None:
    import analysis360 as a360

    KEPT["run"] = a360.open_run(source)


def make_plan(memory: str, against: Sequence[str] = ("previous",)) -> dict[str, Any]:
    import analysis360 as a360

    plan = a360.plan(KEPT["run"], against=against, memory=memory)
    KEPT["plan"] = plan
    tensors = {name for mine in plan.tensors for name, _ in mine}
    names = [c.name for c in plan.checkpoints]
    pairs = [(names[c], role, names[r]) for (c, role), r in plan.references.items()]
    return {
        "revisions": {c.name: c.revision for c in plan.checkpoints}, "references": pairs,
        "memory": plan.memory, "tensors": len(tensors),
        "needed": needed_nbytes(), "peak": plan.peak_nbytes, "text": repr(plan),
        "parameters": sum(t.numel for t in plan.tensors[0].values()),
    }  # fmt: skip


def run_plan(path: str | None = None) -> dict[str, Any]:
    KEPT["table"] = KEPT["plan"].run(path, progress=False)
    return {"nbytes": needed_nbytes()}


def needed_nbytes() -> int:
    every = (t for mine in KEPT["plan"].tensors for t in mine.values())
    return sum(part.nbytes for t in every for part in t.parts)


def save_table(path: str) -> None:
    KEPT["table"].to_pickle(path)


# The same bytes, fetched and dropped


def fetch_and_drop(repo: str, ranges: str, threads: int, endpoint: str) -> dict[str, Any]:
    """Read ranges, listed in a JSON file, by the package's own client, into reused buffers."""
    from analysis360.storage.hub import HubStore

    if "ranges" not in KEPT:
        wanted = json.loads(Path(ranges).read_text())
        revisions = {revision for revision, *_ in wanted}
        KEPT["ranges"] = wanted
        KEPT["stores"] = {r: HubStore(repo, r, endpoint=endpoint) for r in revisions}
        longest = max(size for *_, size in wanted)
        KEPT["buffers"] = _buffers(longest, threads)

    def one(work: Iterator[list[Any]], buffer: memoryview) -> None:
        for revision, file, offset, size in work:
            KEPT["stores"][revision].read_into(file, offset, buffer[:size])

    return {"nbytes": _threaded(one, KEPT["ranges"])}


def read_and_drop(files: list[str], threads: int, piece: int = 1 << 24) -> dict[str, Any]:
    """Read local files in pieces into reused buffers, and drop them."""
    if "buffers" not in KEPT:
        KEPT["buffers"] = _buffers(piece, threads)
    with ExitStack() as stack:
        opened = [stack.enter_context(open(file, "rb", buffering=0)) for file in files]
        sizes = [os.fstat(file.fileno()).st_size for file in opened]
        work = [
            (file.fileno(), at, min(piece, size - at))
            for file, size in zip(opened, sizes)
            for at in range(0, size, piece)
        ]

        def one(work: Iterator[tuple[int, int, int]], buffer: memoryview) -> None:
            for fd, offset, size in work:
                got = os.preadv(fd, [buffer[:size]], offset)
                assert got == size

        return {"nbytes": _threaded(one, work)}


def _buffers(size: int, count: int) -> list[memoryview]:
    """Buffers as the package makes them for itself: in pages of their own."""
    from analysis360.engine.stream import Buffers

    pool = Buffers(size * count)
    return [memoryview(pool.take(size).numpy()) for _ in range(count)]


def _threaded(one: Callable[[Iterator[Any], memoryview], None], work: list[Any]) -> int:
    """Share work between threads, one for each buffer; return its bytes."""
    lock, left = threading.Lock(), iter(work)

    def shared() -> Iterator[Any]:
        while True:
            with lock:
                item = next(left, None)
            if item is None:
                return
            yield item

    errors: list[BaseException] = []

    def guarded(buffer: memoryview) -> None:
        try:
            one(shared(), buffer)
        except BaseException as error:  # a thread's end says nothing to the others
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(b,)) for b in KEPT["buffers"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(item[-1] for item in work)


# What people write


def naive(tensor: Any, reference: Any) -> dict[str, float]:
    """The default statistics as one writes them in a notebook: upcast, one call each."""
    import torch

    a, b = tensor.float(), reference.float()
    d = a - b
    n, difference, other = a.norm(), d.norm(), b.norm()
    return {
        "l2_norm": n.item(), "rms": (n / a.numel() ** 0.5).item(),
        "mean": a.mean().item(), "std": a.std(correction=0).item(), "max_abs": a.abs().max().item(),
        "zero_fraction": (a == 0).float().mean().item(),
        "nonfinite": (~torch.isfinite(a)).sum().item(),
        "kurtosis": (((a - a.mean()) ** 4).mean() / a.var(correction=0) ** 2).item(),
        "displacement": difference.item(), "rel_displacement": (difference / other).item(),
        "max_change": d.abs().max().item(),
        "cosine": (torch.dot(a.flatten(), b.flatten()) / (n * other)).item(),
        "unchanged_fraction": (a == b).float().mean().item(),
    }  # fmt: skip


def open_and_loop(folders: list[str]) -> dict[str, Any]:
    """``safetensors.safe_open``, tensor by tensor, of a checkpoint and the one before."""
    from safetensors import safe_open

    found, nbytes = {}, 0
    with ExitStack() as stack:
        before, after = (
            {
                key: file
                for path in sorted(Path(folder).glob("*.safetensors"))
                for file in [stack.enter_context(safe_open(path, "pt"))]
                for key in file.keys()  # noqa: SIM118 - it is no mapping
            }
            for folder in folders
        )
        for key, file in after.items():
            tensor, reference = file.get_tensor(key), before[key].get_tensor(key)
            nbytes += 2 * tensor.nbytes
            found[key] = naive(tensor, reference)
    KEPT["found"] = found
    return {"nbytes": nbytes}


def said_naively() -> dict[str, Any]:
    """What the loop found."""
    return dict(KEPT["found"])


def download_and_loop(
    repo: str, checkpoints: list[str], endpoint: str, folder: str
) -> dict[str, Any]:
    """``snapshot_download`` to a disk, then the loop over local files."""
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        folders = [
            snapshot_download(repo, revision=r, endpoint=endpoint, cache_dir=cache)
            for r in checkpoints
        ]
        return open_and_loop(folders)


def stream_and_loop(repo: str, checkpoints: list[str], endpoint: str) -> dict[str, Any]:
    """``HfFileSystem``, one read a tensor without its read-ahead, and the same statistics."""
    import torch
    from huggingface_hub import HfFileSystem

    fs = HfFileSystem(endpoint=endpoint)
    found, nbytes = {}, 0
    with ExitStack() as stack:
        before, after = (_by_range(fs, stack, repo, r) for r in checkpoints)
        for key, (shape, _) in after.items():
            bodies = [held[key][1]() for held in (after, before)]
            nbytes += sum(map(len, bodies))
            pair = (torch.frombuffer(body, dtype=torch.bfloat16).view(shape) for body in bodies)
            found[key] = naive(*pair)
    KEPT["found"] = found
    return {"nbytes": nbytes}


def _by_range(
    fs: Any, stack: ExitStack, repo: str, revision: str
) -> dict[str, tuple[list[int], Callable[[], bytearray]]]:
    """Tensors of a checkpoint: shape, and how to read each."""
    found = {}
    for path in fs.glob(f"{repo}@{revision}/*.safetensors"):
        file = stack.enter_context(fs.open(path, "rb", cache_type="none"))
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for key, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[key] = entry["shape"], partial(_read, file, start, stop)
    return found


def _read(file: Any, start: int, stop: int) -> bytearray:
    file.seek(start)
    return bytearray(file.read(stop - start))
