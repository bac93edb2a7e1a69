"""Tensors of one job while they are needed: views into buffers, freed at their last use."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from analysis360.core import DTYPE_BYTES, Part
from analysis360.engine.plan import Plan
from analysis360.engine.schedule import Job, Place, Read
from analysis360.engine.stream import Buffers
from analysis360.errors import FormatError
from analysis360.stats import STORED

__all__ = ["Held"]


class Held:
    """Rows of a job's tensors, one-dimensional, in their stored dtype, on the plan's device.

    Parameters
    ----------
    plan : Plan
    job : Job
    until : mapping of (checkpoint, name, state) to int
        Last checkpoint position at which a stored tensor is used.
    buffers : Buffers
        Where buffers go back to.
    steps : dict of (checkpoint, name) to float
        Optimizer steps of parameters; those that are read here are added for the jobs to come.
    """

    def __init__(
        self,
        plan: Plan,
        job: Job,
        until: Mapping[Place, int],
        buffers: Buffers,
        steps: dict[tuple[int, str], float],
    ) -> None:
        self.plan = plan
        self.until = until
        self.spans = job.spans
        self._buffers = buffers
        self._tensors: dict[Place, torch.Tensor] = {}
        self._parts: dict[Place, list[tuple[Part, torch.Tensor]]] = {}  # with their bytes
        self._users: dict[int, tuple[torch.Tensor, set[Place]]] = {}  # by identity of the buffer
        self._lies_in: dict[Place, list[int]] = {}
        self._steps = steps
        self._copies = None if plan.device == "cpu" else _Copies(torch.device(plan.device))
        self._copied: list[Place] = []

    def add(self, read: Read, buffer: torch.Tensor) -> None:
        """Take a filled buffer; its pieces become available with `complete`."""
        users: set[Place] = set()
        for piece in read.pieces:
            start = read.lead + piece.part.offset - read.offset
            raw = buffer[start : start + piece.part.nbytes]
            place = (read.checkpoint, piece.name, piece.state)
            self._parts.setdefault(place, []).append((piece.part, raw))
            if place not in users:
                users.add(place)
                self._lies_in.setdefault(place, []).append(id(buffer))
        self._users[id(buffer)] = (buffer, users)

    def complete(self, position: int) -> None:
        """Make whole tensors of the parts of a checkpoint."""
        for place in [p for p in self._parts if p[0] == position]:
            parts = self._parts.pop(place)
            if place[2] == "step":
                part, raw = parts[0]
                self._steps[place[0], place[1]] = float(_values(part, raw).reshape(-1)[0])
                self._forget(place)
                continue
            scattered = self.plan.tensors[place[0]][place[1], place[2]].scattered
            tensor = self._assemble(place, parts) if scattered else _values(*parts[0])
            if self._copies is not None:
                tensor = self._copies.start(tensor)
                self._copied.append(place)
            self._tensors[place] = tensor

    def _settle(self) -> None:
        """Give back the buffers of what was copied, once the copies are done."""
        if self._copied and self._copies is not None:
            self._copies.wait()
        for place in self._copied:
            self._forget(place)
        self._copied = []

    def _assemble(self, place: Place, parts: list[tuple[Part, torch.Tensor]]) -> torch.Tensor:
        """Put parts where they belong, in a buffer of their own; theirs go back.

        What no part covers is an error, not zeros.
        """
        info = self.plan.tensors[place[0]][place[1], place[2]]
        start, stop = self.spans[place[1]]
        width, size = math.prod(info.shape[1:]), DTYPE_BYTES[info.dtype]
        self._buffers.release(sum(part.numel for part, _ in parts) * size)
        buffer = self._buffers.take((stop - start) * width * size)
        whole = _as_dtype(buffer, info.dtype)
        shaped = whole.view(stop - start, *info.shape[1:])
        filled = 0
        for part, raw in parts:
            if part.flat is not None:  # as bytes: a file may not align its elements
                buffer[(part.flat[0] - start * width) * size :][: part.nbytes] = raw
            elif part.box:
                rows, *others = part.box
                at = (slice(rows[0] - start, rows[1] - start), *(slice(*side) for side in others))
                shaped[at] = _values(part, raw).view(shaped[at].shape)
            else:
                buffer[:] = raw
            filled += part.numel
        if filled != whole.numel():
            raise FormatError(
                f"{self.plan.checkpoints[place[0]].name}: {info.key}: parts hold {filled} of the "
                f"{whole.numel()} elements of rows {start}:{stop}"
            )
        self._forget(place)
        self._users[id(buffer)] = (buffer, {place})
        self._lies_in[place] = [id(buffer)]
        return whole

    def get(self, position: int, name: str, state: str) -> torch.Tensor | None:
        """Rows of a tensor, flat; None if the checkpoint does not store it."""
        return self._tensors.get((position, name, state))

    def step(self, position: int, name: str) -> float | None:
        """Optimizer step stored for a parameter, if any."""
        return self._steps.get((position, name))

    def dtype(self, position: int, name: str) -> str:
        """Dtype in which the parameter is stored."""
        mine = self.plan.tensors[position]
        return next((mine[name, s].dtype for s in STORED if (name, s) in mine), "")

    def release(self, position: int) -> None:
        """Free what nothing after this checkpoint needs."""
        self._settle()
        for place in list(self._tensors):
            if self.until.get(place, place[0]) <= position:
                del self._tensors[place]
                self._forget(place)

    def close(self) -> None:
        """Free everything."""
        self._settle()
        for place in list(self._lies_in):
            self._tensors.pop(place, None)
            self._forget(place)

    def _forget(self, place: Place) -> None:
        for key in self._lies_in.pop(place, ()):
            buffer, users = self._users[key]
            users.discard(place)
            if not users:
                del self._users[key]
                self._buffers.give(buffer)


class _Copies:
    """Copies to a CUDA device on a stream of their own, while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy without waiting; what is computed from now on waits for it on the device."""
        with torch.cuda.stream(self._stream):
            there = tensor.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        there.record_stream(computing)  # its memory is not used again before that is done
        return there

    def wait(self) -> None:
        """Until all copies are done, and their sources may be written over."""
        self._stream.synchronize()


def _values(part: Part, raw: torch.Tensor) -> torch.Tensor:
    """Elements of a part, of its box's shape if it is stored as a strided view."""
    values = _as_dtype(raw, part.dtype)
    return values if part.stride is None else values.as_strided(part.sides, part.stride)


def _as_dtype(raw: torch.Tensor, dtype: str) -> torch.Tensor:
    """View bytes as elements; a range that the file does not align is copied."""
    if raw.storage_offset() % DTYPE_BYTES[dtype]:
        raw = raw.clone()
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)
    return raw.view(kind)
