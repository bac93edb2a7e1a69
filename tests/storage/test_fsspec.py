import asyncio
import concurrent.futures
import sys
import time

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from analysis360.errors import RunNotFound, StorageError
from analysis360.storage import open_store
from analysis360.storage.fsspec_store import FsspecStore, fingerprint
from analysis360.testing import StoreTests

DATA = bytes(range(256)) * 1000


class Bucket(AsyncFileSystem):
    """An object store with asynchronous requests, as s3fs and gcsfs are."""

    protocol = "bucket"
    cachable = False
    objects: dict[str, bytes] = {}
    tags: dict[str, str] = {}
    asked: list[tuple[str, str, int, int]] = []
    faults: list[object] = []

    def info_of(self, path):
        data = self.objects[path]
        tag = f'"{hash(data)}"'
        return {"name": path, "size": len(data), "type": "file", "ETag": tag}

    async def _find(self, path, maxdepth=None, withdirs=False, **_):
        await self.fail()
        below = [p for p in self.objects if p == path or p.startswith(f"{path}/")]
        found = {p: self.info_of(p) for p in below}
        marker = f"{path}/"
        return found | {marker: {"name": marker, "size": 0, "type": "file"}}

    async def _info(self, path, **_):
        return self.info_of(path)

    async def _cat_file(self, path, start=None, end=None, **_):
        self.asked.append(("cat", path, start, end - start))
        cut = await self.fail()
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start : end + (cut or 0)]

    async def fail(self):
        """The next fault: an exception, a number of bytes too few or many, or a wait."""
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, float):
            await asyncio.sleep(fault)
            return 0
        return fault


class Shelf(MemoryFileSystem):
    """fsspec's own file system in memory, which is not asynchronous, under a name that is free."""

    protocol = "shelf"
    store: dict[str, object] = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("shelf://"))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    fsspec.register_implementation("shelf", Shelf, clobber=True)


@pytest.fixture
def bucket():
    Bucket.objects = {"b/run/step_1/a.bin": DATA, "b/run/step_10/a.bin": b"other"}
    Bucket.asked, Bucket.faults = [], []
    return Bucket


def put(protocol, root, contents):
    if protocol == "bucket":
        Bucket.objects = {f"{root}/{path}": data for path, data in contents.items()}
        Bucket.asked, Bucket.faults = [], []
        return
    Shelf.store.clear()
    for path, data in contents.items():
        Shelf().pipe_file(f"/{root}/{path}", data)


class TestFsspecStore(StoreTests):
    @pytest.fixture(params=["bucket", "shelf"])
    def store(self, request):
        put(request.param, "b/run", self.contents)
        with open_store(f"{request.param}://b/run") as store:
            yield store


def test_requests_are_exactly_the_ranges(bucket):
    with open_store("bucket://b/run/step_1/") as store:
        assert dict(store.files()) == {"a.bin": len(DATA)}
        assert store.read("a.bin", 1000, 8) == DATA[1000:1008]
        assert bucket.asked == [("cat", "b/run/step_1/a.bin", 1000, 8)]


def test_large_range_goes_by_pieces(bucket):
    data = bytes(range(251)) * 150_000
    bucket.objects["b/run/step_1/a.bin"] = data
    with open_store("bucket://b/run/step_1") as store:
        assert store.read("a.bin", 5, 37_000_000) == data[5:37_000_005]
    assert [n for *_, n in bucket.asked] == [1 << 24, 1 << 24, 37_000_000 - (2 << 24)]


def test_one_file_is_a_store_of_its_own(bucket):
    for files in (None, {"a.bin": len(DATA)}):
        with open_store("bucket://b/run/step_1/a.bin", files=files) as store:
            assert dict(store.files()) == {"a.bin": len(DATA)}
            assert store.read("a.bin", 3, 4) == DATA[3:7]


def test_given_listing_asks_nothing(bucket):
    with FsspecStore("bucket://b/run/step_1", files={"a.bin": len(DATA)}) as store:
        bucket.faults = [PermissionError("listing is not allowed"), None]
        assert dict(store.files()) == {"a.bin": len(DATA)}
        assert len(bucket.faults) == 2
        bucket.faults.clear()
        assert store.read("a.bin", 0, 10) == DATA[:10]


@pytest.mark.parametrize("fault", [OSError("reset"), TimeoutError(), RuntimeError("503"), -3])
def test_fault_is_tried_again(bucket, fault):
    with FsspecStore("bucket://b/run/step_1", backoff=0.001) as store:
        store.files()
        bucket.faults = [fault, fault]
        assert store.read("a.bin", 100, 1000) == DATA[100:1100]
        assert store.retries == 2


def test_stalled_request_times_out_and_is_asked_again(bucket):
    with FsspecStore("bucket://b/run/step_1", backoff=0.001, timeout=0.2) as store:
        store.files()
        bucket.faults = [30.0]
        assert store.read("a.bin", 0, 10) == DATA[:10]
        assert store.retries == 1


def test_gives_up_with_file_range_reason_and_attempts(bucket):
    with FsspecStore("bucket://b/run/step_1", backoff=0.001, attempts=3) as store:
        store.files()
        bucket.faults = [-1] * 9
        with pytest.raises(StorageError) as caught:
            store.read("a.bin", 10, 20)
    for said in ("bucket://b/run/step_1", "a.bin", "10…30", "19 bytes instead of 20", "3 attempts"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [(PermissionError("no key"), "PermissionError: no key"), (5, "25 bytes instead of 20: the range")],
)  # fmt: skip
def test_what_trying_again_does_not_mend_is_said_at_once(bucket, fault, message):
    with FsspecStore("bucket://b/run/step_1") as store:
        store.files()
        bucket.faults = [fault]
        with pytest.raises(StorageError, match=f"a.bin: bytes 10…30: .*{message}"):
            store.read("a.bin", 10, 20)
        assert store.retries == 0


def test_missing_file_and_missing_folder(bucket):
    with FsspecStore("bucket://b/run/step_1", files={"gone.bin": 5}) as store:
        with pytest.raises(StorageError, match=r"gone\.bin: bytes 0…5: no such file"):
            store.read("gone.bin", 0, 5)
    with pytest.raises(RunNotFound, match="bucket://b/none: no files there"):
        open_store("bucket://b/none").files()


def test_interrupt_ends_a_stall_at_once(bucket):
    with FsspecStore("bucket://b/run/step_1") as store:
        store.files()
        bucket.faults = [30.0, 30.0]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            reads = [pool.submit(store.read, "a.bin", i, 10) for i in range(2)]
            while bucket.faults:
                time.sleep(0.01)
            start = time.monotonic()
            store.interrupt()
            for read in reads:
                with pytest.raises(StorageError, match="a.bin: bytes .*: interrupted"):
                    read.result(10)
            assert time.monotonic() - start < 10
        with pytest.raises(StorageError, match="interrupted"):
            store.read("a.bin", 0, 10)
        store.close()
        assert store.read("a.bin", 0, 10) == DATA[:10]


# Identity


def test_fingerprint_tells_changes_and_guards_opening(bucket):
    uri = "bucket://b/run/step_1"
    first = fingerprint(uri)
    assert first == fingerprint(uri) == fingerprint(f"{uri}/")
    assert first.startswith("remote:") and len(first) == len("remote:") + 16
    assert open_store(uri, first).read("a.bin", 0, 5) == DATA[:5]
    bucket.objects["b/run/step_1/train.csv"] = b"step,loss"  # a log may grow
    assert fingerprint(uri) == first
    bucket.objects["b/run/step_1/a.bin"] = DATA[::-1]
    assert fingerprint(uri) != first
    with pytest.raises(StorageError, match=f"{uri}: files were changed since"):
        open_store(uri, first)


def test_fingerprint_of_a_file_system_that_tells_times_only():
    put("shelf", "b/run", {"a.bin": b"12345"})
    first = fingerprint("shelf://b/run")
    put("shelf", "b/run", {"a.bin": b"54321"})
    assert fingerprint("shelf://b/run") != first


def test_ranges_are_kept_by_etag_if_it_is_still_the_same(bucket, tmp_path):
    uri = "bucket://b/run/step_1"
    for _ in range(2):
        with open_store(uri, cache_dir=tmp_path) as store:
            assert store.read("a.bin", 0, 1000) == DATA[:1000]
    assert len(bucket.asked) == 1
    with open_store(uri, cache_dir=tmp_path) as store:
        store.files()
        assert store.identity("a.bin")
        bucket.objects["b/run/step_1/a.bin"] = DATA[::-1]
        with pytest.raises(StorageError, match="a.bin: bytes 5000…5010: the file was changed"):
            store.read("a.bin", 5000, 10)
        bucket.objects["b/run/step_1/a.bin"] = DATA
        assert store.read("a.bin", 5000, 10) == DATA[5000:5010]  # it was not kept


def test_ranges_of_a_file_system_without_etags_are_not_kept(tmp_path):
    put("shelf", "b/run", {"a.bin": b"12345"})
    with open_store("shelf://b/run", cache_dir=tmp_path) as store:
        assert store.identity("a.bin") is None
        assert store.read("a.bin", 1, 2) == b"23"
    assert not list(tmp_path.glob("*.data"))


# Packages


@pytest.mark.parametrize(
    ("uri", "package", "advice"),
    [("s3://b/run", "s3fs", "'analysis360[remote]'"), ("gs://b/run", "gcsfs", "'analysis360[remote]'"),
     ("abfs://c/run", "adlfs", "adlfs")],
)  # fmt: skip
def test_missing_package_is_named_with_what_installs_it(uri, package, advice, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    with pytest.raises(StorageError, match=f"{uri}: .*{package}.*") as caught:
        open_store(uri)
    assert advice in str(caught.value)


def test_unknown_scheme():
    with pytest.raises(StorageError, match="tape://x: unknown scheme 'tape'; known: a path, file"):
        open_store("tape://x")


def test_files_that_changed_between_two_uses_of_a_store_are_noticed(bucket):
    uri = "bucket://b/run/step_1"
    store = open_store(uri, fingerprint(uri))
    assert store.read("a.bin", 0, 3) == DATA[:3]
    store.close()
    assert store.read("a.bin", 3, 3) == DATA[3:6]  # the same files: it goes on
    store.close()
    bucket.objects["b/run/step_1/a.bin"] = bytes(len(DATA))
    with pytest.raises(StorageError, match="step_1: files were changed since it was opened"):
        store.read("a.bin", 0, 3)
