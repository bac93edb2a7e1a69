"""Test suites for storages and formats, for whoever writes another one.

Subclass, give the fixture that makes one, and let pytest collect the class.

Examples
--------
A store of your own is tested by::

    class TestMyStore(StoreTests):
        @pytest.fixture
        def store(self, tmp_path):
            for path, data in self.contents.items():
                ...                              # put the files where the store looks
            return MyStore(tmp_path)

and a format by::

    class TestMyFormat(FormatTests):
        @pytest.fixture
        def checkpoint(self, tmp_path):
            tensors = {"w": np.ones((3, 2), np.float32)}
            ...                                  # write them
            return MyFormat(), LocalStore(tmp_path), tensors
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from analysis360.core import DTYPE_BYTES, TensorInfo
from analysis360.errors import FormatError, StorageError
from analysis360.storage.base import Store

if TYPE_CHECKING:
    import numpy as np

    from analysis360.formats.base import Format, Index

__all__ = ["FormatTests", "StoreTests", "read_tensor"]


class StoreTests:
    """What every store must do. The subclass gives a fixture ``store`` holding `contents`."""

    contents: ClassVar[Mapping[str, bytes]] = {
        "model.safetensors": bytes(range(256)) * 1000,
        "optimizer/part one.bin": b"0123456789",
        "empty.bin": b"",
    }
    """Path to bytes of the files that the fixture must put into the store."""

    def test_lists_every_file_with_its_size(self, store: Store) -> None:
        """Paths are relative, with forward slashes."""
        listed = store.files()
        assert dict(listed) == {path: len(data) for path, data in self.contents.items()}
        assert store.uri

    def test_reads_exactly_the_range(self, store: Store) -> None:
        """At the start, in the middle, up to the end, and all of it."""
        for path, data in self.contents.items():
            n = len(data)
            for low, high in {(0, n), (0, min(n, 1)), (n // 3, n // 2), (n - n // 4, n), (n, n)}:
                assert store.read(path, low, high - low) == data[low:high], (path, low, high)

    def test_fills_the_callers_buffer_and_no_more(self, store: Store) -> None:
        """Bytes beside the view stay as they were."""
        path, data = next(iter(self.contents.items()))
        memory = bytearray(b"\xaa" * 300)
        store.read_into(path, 1000, memoryview(memory)[100:200])
        assert memory == b"\xaa" * 100 + data[1000:1100] + b"\xaa" * 100

    def test_refuses_what_is_not_there(self, store: Store) -> None:
        """A range past the end, a negative one, an unknown or outside path: each names the file."""
        path, data = next(iter(self.contents.items()))
        for asked, offset, nbytes in [
            (path, len(data) - 1, 2),
            (path, len(data) + 10, 1),
            (path, -1, 1),
            ("no such file", 0, 1),
            (f"../{path}", 0, 1),
        ]:
            try:
                store.read(asked, offset, nbytes)
            except StorageError as error:
                assert asked in str(error)
            else:
                raise AssertionError(f"read {nbytes} bytes at {offset} of {asked!r}")

    def test_serves_threads_at_once(self, store: Store) -> None:
        """Sixty ranges by eight threads."""
        path, data = next(iter(self.contents.items()))
        spans = [(i * 997 % 200_000, 1 + i * 641 % 5000) for i in range(60)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda span: store.read(path, *span), spans))
        assert found == [data[low : low + n] for low, n in spans]

    def test_reads_again_after_close(self, store: Store) -> None:
        """Closing lets go of connections, not of the store."""
        path, data = next(iter(self.contents.items()))
        assert store.read(path, 0, 4) == data[:4]
        store.close()
        store.close()
        assert store.read(path, 4, 4) == data[4:8]


class _Watched(Store):
    """Passes reads on and keeps a list of them."""

    def __init__(self, store: Store) -> None:
        self.store, self.uri, self.seen = store, store.uri, list[tuple[str, int, int]]()

    def files(self) -> Mapping[str, int]:
        return self.store.files()

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        self.seen.append((path, offset, len(buffer)))
        self.store.read_into(path, offset, buffer)


def read_tensor(store: Store, tensor: TensorInfo) -> np.ndarray[Any, Any]:
    """Read a whole tensor, by its parts, into an array.

    Parameters
    ----------
    store : Store
    tensor : TensorInfo
        Of a dtype that numpy has, or ``"bfloat16"``, which is given as float32.

    Returns
    -------
    ndarray
        Of the tensor's shape.
    """
    import numpy as np

    brain = tensor.dtype == "bfloat16"
    dtype = np.dtype(np.uint16 if brain else tensor.dtype)
    found = np.zeros(tensor.shape, dtype)
    for part in tensor.parts:
        values = np.frombuffer(store.read(part.file, part.offset, part.nbytes), dtype)
        if part.stride is not None:
            steps = [s * dtype.itemsize for s in part.stride]
            values = np.lib.stride_tricks.as_strided(values, part.sides, steps, writeable=False)
        if part.flat is not None:
            found.reshape(-1)[slice(*part.flat)] = values
        elif part.box is not None:
            box = tuple(slice(*span) for span in part.box)
            place = found[box] if box else found[...]
            place[...] = values.reshape(place.shape)
    return (found.astype(np.uint32) << 16).view(np.float32) if brain else found


class FormatTests:
    """What every format must do.

    The subclass gives a fixture ``checkpoint``: the format, a store with one checkpoint, and its
    weights as a mapping of name to array.
    """

    def test_knows_its_own_files(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """And no others."""
        form, store, _ = checkpoint
        assert form.name
        assert form.matches(store.files())
        assert not form.matches({})
        assert not form.matches({"README.md": 10, "config.json": 20})

    def test_finds_every_weight_where_it_is(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """Names, shapes and values; parts cover each element once."""
        import numpy as np

        form, store, weights = checkpoint
        index = form.index(store)
        found = {t.name: t for t in index.tensors if t.state == "weight"}
        assert found.keys() == weights.keys()
        for name, tensor in found.items():
            assert tensor.shape == weights[name].shape
            assert sum(p.nbytes for p in tensor.parts) == tensor.numel * DTYPE_BYTES[tensor.dtype]
            np.testing.assert_array_equal(read_tensor(store, tensor), weights[name])

    def test_parts_lie_in_the_files(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """So that the engine can plan without asking."""
        form, store, _ = checkpoint
        files = store.files()
        for tensor in form.index(store).tensors:
            for part in tensor.parts:
                assert 0 <= part.offset <= part.offset + part.nbytes <= files[part.file]
                assert part.dtype in DTYPE_BYTES
                assert (part.flat is None) != (part.box is None)

    def test_names_and_states_are_unique(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """One tensor per name and state."""
        form, store, _ = checkpoint
        places = [(t.name, t.state) for t in form.index(store).tensors]
        assert len(places) == len(set(places))

    def test_says_every_byte_that_it_read(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """``probes`` is the plan's account of headers."""
        form, store, _ = checkpoint
        watched = _Watched(store)
        index = form.index(watched)
        assert sorted(watched.seen) == sorted(index.probes)

    def test_is_the_same_twice_and_travels(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """An index is data: equal when made again, and it can be pickled for a cluster."""
        form, store, _ = checkpoint
        first: Index = form.index(store)
        assert form.index(store) == first
        assert pickle.loads(pickle.dumps(first)) == first

    def test_names_a_file_that_is_cut_short(self, checkpoint: tuple[Format, Store, Any]) -> None:
        """A file without its second half: an error with its name, or what is left is readable."""
        form, store, _ = checkpoint
        for path, size in store.files().items():
            cut = _Cut(store, path, size // 2)
            if not form.matches({path: size}):
                continue
            try:
                index = form.index(cut)
            except (FormatError, StorageError) as error:
                assert path.rsplit("/", 1)[-1] in str(error)
            else:
                used = [p for t in index.tensors for p in t.parts if p.file == path]
                assert all(p.offset + p.nbytes <= size // 2 for p in used)


class _Cut(_Watched):
    """A store in which one file is shorter than it should be."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        super().__init__(store)
        self._files = {**store.files(), path: size}

    def files(self) -> Mapping[str, int]:
        return self._files

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        self.check_range(path, offset, len(buffer))
        super().read_into(path, offset, buffer)
