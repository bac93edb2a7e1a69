import concurrent.futures
import os
import pathlib

import numpy as np
import pytest

from analysis360.errors import RunNotFound, StorageError
from analysis360.storage import open_store
from analysis360.storage.local import LocalStore, fingerprint
from analysis360.testing import StoreTests


class TestLocalStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        for path, data in self.contents.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
        return LocalStore(tmp_path)


class TestLocalStoreWithoutPreadv(TestLocalStore):
    """As on Windows."""

    @pytest.fixture(autouse=True)
    def _no_preadv(self, monkeypatch):
        monkeypatch.delattr(os, "preadv", raising=False)


def test_without_preadv_threads_do_not_move_each_others_position(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    words = np.arange(1 << 18, dtype=np.uint32)
    words.tofile(tmp_path / "a.bin")
    store = LocalStore(tmp_path)
    spans = [(i * 4099 % 200_000, 60_000) for i in range(400)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: store.read("a.bin", 4 * span[0], 4 * span[1]), spans))
    for (first, count), raw in zip(spans, found):
        got = np.frombuffer(raw, dtype=np.uint32)
        assert got[0] == first and got[-1] == first + count - 1


def test_one_file_is_a_store_of_its_own(tmp_path):
    path = tmp_path / "step_100.pt"
    path.write_bytes(b"0123456789")
    for uri in (str(path), path.as_uri()):
        store = open_store(uri)
        assert dict(store.files()) == {"step_100.pt": 10}
        assert store.read("step_100.pt", 3, 4) == b"3456"


def test_file_address_with_escapes_and_a_host(tmp_path):
    path = tmp_path / "run ä%1" / "step_1.pt"
    path.parent.mkdir()
    path.write_bytes(b"0123456789")
    for uri in (path.as_uri(), path.parent.as_uri(), path.as_uri().replace("///", "//localhost/")):
        assert open_store(uri).read("step_1.pt", 3, 4) == b"3456"


def test_file_cut_after_it_was_listed_is_an_error_with_range_and_size(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 100)
    store = LocalStore(tmp_path)
    assert store.read("a.bin", 0, 100) == b"x" * 100
    os.truncate(path, 60)
    with pytest.raises(StorageError, match=r"a\.bin: asked for bytes 10…90, .* ends at 60"):
        store.read("a.bin", 10, 80)


def test_removed_file_is_named(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    store = LocalStore(tmp_path)
    assert dict(store.files()) == {"a.bin": 1}
    path.unlink()
    with pytest.raises(StorageError, match=r"a\.bin.*No such file"):
        store.read("a.bin", 0, 1)


def test_missing_folder():
    with pytest.raises(RunNotFound, match="/no/such/folder"):
        open_store("/no/such/folder")
    with pytest.raises(RunNotFound, match="/no/such/folder"):
        fingerprint("/no/such/folder")


def test_many_files_keep_few_descriptors_open(tmp_path):
    for i in range(100):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]))
    before = len(os.listdir("/proc/self/fd")) if pathlib.Path("/proc/self/fd").is_dir() else None
    store = LocalStore(tmp_path)
    assert [store.read(f"{i}.bin", 0, 1)[0] for i in range(100)] == list(range(100))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) - before <= 33
        store.close()
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_links_to_files_are_followed(tmp_path):
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_bytes(b"12345")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "gone.bin").symlink_to(tmp_path / "nothing")
    store = LocalStore(snapshot)
    assert dict(store.files()) == {"model.safetensors": 5}
    assert store.read("model.safetensors", 1, 2) == b"23"


def test_fingerprint_tells_changes_and_guards_opening(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path)
    assert first.startswith("local:") and len(first) == len("local:") + 16
    assert open_store(str(tmp_path), first).read("a.bin", 0, 5) == b"12345"
    path.write_bytes(b"54321x")
    assert fingerprint(tmp_path) != first
    with pytest.raises(StorageError, match="were changed since"):
        open_store(str(tmp_path), first)


def test_fingerprint_is_of_tensors_and_their_index_only(tmp_path):
    """What is written beside them while they are measured is no change of them."""
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "part.pt").write_bytes(b"12345")
    first = fingerprint(tmp_path)
    (tmp_path / "train.csv").write_text("step,loss\n")
    (tmp_path / "measured" / "parts").mkdir(parents=True)
    (tmp_path / "measured" / "plan.json").write_text("{}")
    (tmp_path / "measured" / "parts" / "0.parquet").write_text("rows")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.bin").write_bytes(b"no format looks here")
    assert fingerprint(tmp_path) == first
    listed = set(LocalStore(tmp_path).files())
    assert {"train.csv", "runs/events.bin"} <= listed
    assert not any(path.startswith("measured/") for path in listed)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    second = fingerprint(tmp_path)
    (tmp_path / "optimizer" / "part.pt").write_bytes(b"123456")
    assert len({first, second, fingerprint(tmp_path)}) == 3


def test_fingerprint_of_files_in_a_form_that_another_package_reads(tmp_path):
    (tmp_path / "shard.distcp").write_bytes(b"1")
    first = fingerprint(tmp_path)
    (tmp_path / "shard.distcp").write_bytes(b"12")
    assert fingerprint(tmp_path) != first


def test_given_listing_is_used(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "b.bin").write_bytes(b"12345")
    assert dict(open_store(str(tmp_path), files={"a.bin": 5}).files()) == {"a.bin": 5}
