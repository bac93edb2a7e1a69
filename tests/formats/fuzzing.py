"""Damage checkpoints at random, where it hurts: in what a reader reads to find the tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping

from analysis360.formats import Index
from analysis360.formats.layout import _covers
from analysis360.storage.base import Store

ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
       2**63, 2**64 - 1)  # fmt: skip


class Files(Store):
    """Files in memory, with an account of what is read of them."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.uri, self.contents, self.taken = "fuzz://", dict(contents), 0

    def files(self) -> Mapping[str, int]:
        return {path: len(data) for path, data in self.contents.items()}

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        self.check_range(path, offset, len(buffer))
        self.taken += len(buffer)
        buffer[:] = self.contents[path][offset : offset + len(buffer)]


class Damage:
    """Draws damaged copies of one checkpoint.

    Bytes are changed in the ranges that the reader's probes name: elsewhere are values of tensors,
    of which every one is allowed.
    """

    def __init__(self, contents: Mapping[str, bytes], index: Index) -> None:
        self.contents = dict(contents)
        self.spans = [(f, at, n) for f, at, n in index.probes if n]

    def draw(self, rng: random.Random) -> dict[str, bytes]:
        """One to three things go wrong."""
        made = dict(self.contents)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.06:
                self._whole_file(rng, made)
            else:
                self._bytes(rng, made)
        return made

    def _whole_file(self, rng: random.Random, made: dict[str, bytes]) -> None:
        path, other = rng.choice(sorted(made)), rng.choice(sorted(made))
        match rng.randrange(5):
            case 0 if len(made) > 1:
                del made[path]
            case 1:
                made[path] = made[other]
            case 2:
                made[path], made[other] = made[other], made[path]
            case 3:
                made[path] = b""
            case _:
                made[path] = made[path] + made[other][: rng.randrange(1000)]

    def _bytes(self, rng: random.Random, made: dict[str, bytes]) -> None:
        path, start, size = rng.choice(self.spans)
        if path not in made:
            return
        data = bytearray(made[path])
        at = min(start + self._place(rng, size), max(len(data) - 1, 0))
        match rng.randrange(9):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ (1 << rng.randrange(8))])
            case 2:
                width = rng.choice((1, 2, 4, 8))
                word = (rng.choice(ODD) % 2 ** (8 * width)).to_bytes(
                    width, rng.choice(("little", "big"))
                )  # type: ignore[arg-type]
                data[at : at + width] = word
            case 3:
                del data[at : at + rng.choice((1, 1, 2, 8, 64, 1000))]
            case 4:
                piece = data[at : at + rng.choice((1, 2, 8, 64, 300))]
                data[at:at] = piece
            case 5:
                del data[at:]
            case 6:
                piece = data[at : at + rng.choice((4, 16, 64))]
                to = min(start + self._place(rng, size), len(data))
                data[to : to + len(piece)] = piece
            case 7:
                data[at : at + 8] = rng.randbytes(8)
            case _:
                self._number(rng, data, at)
        made[path] = bytes(data)

    @staticmethod
    def _place(rng: random.Random, size: int) -> int:
        """Anywhere; often near either end, where the directories are."""
        near = min(size, 400)
        return rng.choice(
            (rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near))
        )

    @staticmethod
    def _number(rng: random.Random, data: bytearray, at: int) -> None:
        """Change a digit of text, or the next small integer of a pickle."""
        for i in range(at, min(at + 200, len(data) - 2)):
            if data[i : i + 1].isdigit():
                data[i : i + 1] = str(rng.randrange(10)).encode()
                return
            if data[i] in b"KM":
                data[i + 1] = rng.randrange(256)
                return


def check(index: Index, files: Mapping[str, int]) -> None:
    """What must hold of every index that a reader gives, whatever it was given."""
    places = [(t.name, t.state) for t in index.tensors]
    assert len(places) == len(set(places))
    for tensor in index.tensors:
        for part in tensor.parts:
            assert 0 <= part.offset <= part.offset + part.nbytes <= files[part.file], tensor
            assert part.dtype == tensor.dtype
            if part.stride is None:
                assert part.nbytes == part.numel * {True: 1}.get(False, _size(part.dtype))
        if tensor.numel:
            assert not _covers(tensor.shape, tensor.parts), tensor
        else:
            assert not tensor.parts


def _size(dtype: str) -> int:
    from analysis360.core import DTYPE_BYTES

    return DTYPE_BYTES[dtype]
