import concurrent.futures
import hashlib
import json
import time

import pytest
import torch
from hub_server import Fault, HubServer, serve_run
from huggingface_hub import HfApi, constants, hf_hub_download
from safetensors.torch import save_file
from servers import Quiet, running

from analysis360.errors import RunNotFound, StorageError
from analysis360.formats import index_checkpoint
from analysis360.storage import open_store
from analysis360.storage.hub import HubStore, list_content, list_files, list_refs
from analysis360.testing import StoreTests

REPO, FILE = "owner/name", "model.safetensors"
DATA = bytes(range(256)) * 4096


@pytest.fixture
def server(tmp_path):
    write(tmp_path / REPO / "main", {FILE: DATA, "config.json": b'{"a": 1}', "sub/b.bin": b"xyz"})
    write(tmp_path / REPO / "ckpt_160", {FILE: DATA[::-1]})
    write(tmp_path / REPO / "tags" / "v1", {"a.bin": b"tagged"})
    with HubServer(tmp_path) as server:
        yield server


def write(folder, contents):
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@pytest.fixture
def store(server):
    with HubStore(REPO, commit_of(server), endpoint=server.endpoint, backoff=0.001) as store:
        store.files()
        yield store


def commit_of(server, ref="main"):
    return dict(list_refs(REPO, server.endpoint))[ref]


class TestHubStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        write(tmp_path / REPO / "main", self.contents)
        with HubServer(tmp_path) as server:
            with open_store(f"hf://{REPO}", "main", endpoint=server.endpoint) as store:
                yield store


# Listings


def test_branches_and_tags_with_their_commits(server):
    refs = list_refs(REPO, server.endpoint)
    assert [name for name, _ in refs] == ["ckpt_160", "main", "v1"]
    assert all(len(commit) == 40 for _, commit in refs)
    assert list_files(REPO, dict(refs)["v1"], server.endpoint) == {"a.bin": 6}


def test_listing_goes_through_all_pages(server):
    server.page = 1
    files = list_files(REPO, commit_of(server), server.endpoint)
    assert files == {FILE: len(DATA), "config.json": 8, "sub/b.bin": 3}
    assert server.count("GET", path="/tree/") > 2


def test_folder_of_a_revision_is_a_store(server):
    with HubStore(f"{REPO}/sub@main", endpoint=server.endpoint) as store:
        assert store.files() == {"b.bin": 3}
        assert store.read("b.bin", 1, 2) == b"yz"
        assert store.identity("b.bin") == f"hf://{REPO}/sub@{commit_of(server)}"
    with open_store(f"hf://{REPO}/sub", "main", endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match=f"no file '{FILE}'; of 1 files: b.bin"):
            store.read(FILE, 0, 1)


def test_hashes_come_with_the_listing(server):
    sizes, hashes = list_content(REPO, "main", server.endpoint)
    assert sizes == list_files(REPO, "main", server.endpoint)
    assert hashes[FILE] == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    blob = hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()
    assert hashes["config.json"] == f"git:{blob}"
    below, _ = list_content(REPO, "main", server.endpoint, folder="sub")
    assert below == {"b.bin": 3}


def test_given_listing_asks_nothing(server):
    with HubStore(REPO, "main", files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
        assert store.read(FILE, 5, 3) == DATA[5:8]
    assert [r.method for r in server.log] == ["HEAD", "GET"]


# One resolution per file, exact ranges, no token abroad


def test_each_file_is_resolved_once_and_only_ranges_are_read(server):
    with HubStore(
        REPO, "main", files={FILE: len(DATA), "sub/b.bin": 3}, endpoint=server.endpoint,
        token="hf_good",
    ) as store:  # fmt: skip
        spans = [(i * 1000, 100 + i) for i in range(20)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda span: store.read(FILE, *span), spans))
        assert found == [DATA[low : low + n] for low, n in spans]
        store.read("sub/b.bin", 0, 3)
    heads = [r.file for r in server.log if r.method == "HEAD"]
    assert sorted(heads) == [FILE, "sub/b.bin"]
    asked = sorted((o, n) for _, file, o, n in server.ranges() if file == FILE)
    assert asked == sorted(spans)
    assert sum(r.sent for r in server.log) == sum(n for _, n in spans) + 3
    assert {r.authorized for r in server.log if r.host == "cdn"} == {False}
    assert {r.authorized for r in server.log if r.host == "api"} == {True}


def test_small_file_that_the_hub_serves_itself(server, store):
    assert store.read("config.json", 1, 3) == b'"a"'
    assert store.read("config.json", 0, 8) == b'{"a": 1}'
    assert server.count("HEAD", path="config.json") == 1


def test_huge_sparse_file(server, tmp_path):
    path = tmp_path / REPO / "main" / "huge.bin"
    size = 60 * 1024**3
    with path.open("wb") as file:
        file.seek(size - 5)
        file.write(b"hello")
    with HubStore(REPO, "main", files={"huge.bin": size}, endpoint=server.endpoint) as store:
        assert store.read("huge.bin", size - 5, 5) == b"hello"
        assert store.read("huge.bin", size // 2, 4) == bytes(4)


def test_index_over_the_hub_is_that_of_the_folder_and_reads_what_it_says(tmp_path):
    folder = tmp_path / "checkpoints" / "spike_ckpt_1"
    folder.mkdir(parents=True)
    weight_map = {}
    for i in range(3):
        save_file({f"w{i}": torch.randn(200, 200)}, folder / f"model-{i}.safetensors")
        weight_map[f"w{i}"] = f"model-{i}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({"m.w": torch.randn(300, 300)}, folder / "extra.pt")
    serve_run(folder.parent, tmp_path / "hub", REPO)
    with HubServer(tmp_path / "hub") as server:
        uri = f"hf://{REPO}@spike_ckpt_1"
        with open_store(uri, endpoint=server.endpoint) as store:
            index = index_checkpoint(store)
        assert index == index_checkpoint(open_store(str(folder)))
        assert sorted((f, o, n) for _, f, o, n in server.ranges()) == sorted(index.probes)
        assert server.count("HEAD") == 5


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=429, headers={"Retry-After": "0"}),
        Fault("status", status=429, times=3),
        Fault("status", status=503, times=2),
        Fault("status", status=504),
        Fault("status", host="api", method="HEAD", status=503),
        Fault("status", host="api", method="HEAD", status=429, headers={"Retry-After": "0"}),
        Fault("cut", after=0),
        Fault("cut", after=300_000),
        Fault("cut", after=100_000, times=8),
        Fault("reset", times=2),
        Fault("reset", host="api", method="HEAD"),
        Fault("expired"),
    ],
    ids=lambda f: f"{f.host}-{f.kind}-{f.status}-{f.after}-x{f.times}",
)
def test_fault_is_survived(server, store, fault):
    server.faults = [fault]
    assert store.read(FILE, 1000, 900_000) == DATA[1000:901_000]
    assert fault.times == 0


@pytest.mark.parametrize("kind", ["cut", "hang"])
def test_broken_body_resumes_from_its_last_byte(server, kind):
    files = {FILE: len(DATA)}
    with HubStore(
        REPO, "main", files=files, endpoint=server.endpoint, timeout=0.3, backoff=0.001
    ) as store:
        server.faults = [Fault(kind, after=700_000, seconds=1.0)]
        assert store.read(FILE, 1000, 900_000) == DATA[1000:901_000]
    asked = [(o, n) for _, _, o, n in server.ranges()]
    assert asked == [(1000, 900_000), (701_000, 200_000)]


def test_expired_address_is_resolved_again_once_for_all_threads(server, store):
    assert store.read(FILE, 0, 10) == DATA[:10]
    server.expire_all()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: store.read(FILE, i * 100, 100), range(30)))
    assert found == [DATA[i * 100 : i * 100 + 100] for i in range(30)]
    assert server.count("HEAD") == 2


def test_address_that_stays_refused(server, store):
    server.faults = [Fault("expired", times=100)]
    with pytest.raises(StorageError, match=rf"{REPO}@.*{FILE}: bytes 0…10: status 403"):
        store.read(FILE, 0, 10)
    assert server.count("HEAD") == 2


def test_stalled_server_times_out_and_is_asked_again(server):
    with HubStore(
        REPO, "main", files={FILE: len(DATA)}, endpoint=server.endpoint, timeout=0.2, backoff=0.001
    ) as store:
        server.faults = [Fault("stall", seconds=30.0)]
        start = time.monotonic()
        assert store.read(FILE, 0, 10) == DATA[:10]
        assert time.monotonic() - start < 10


def test_gives_up_with_repository_file_range_status_and_attempts(server, store):
    server.faults = [Fault("status", status=503, times=100)]
    with pytest.raises(StorageError) as caught:
        store.read(FILE, 10, 20)
    for said in (REPO, FILE, "10…30", "503", "6 attempts"):
        assert said in str(caught.value)
    assert server.count("GET", "cdn") == 6


@pytest.mark.parametrize(
    ("kind", "message"),
    [("ignore_range", r"ignored the range \(status 200\)"), ("wrong_range", "Content-Range")],
)
def test_wrong_bytes_are_never_taken(server, store, kind, message):
    server.faults = [Fault(kind)]
    with pytest.raises(StorageError, match=message):
        store.read(FILE, 10, 20)


def test_size_that_differs_from_the_listing(server):
    with HubStore(REPO, "main", files={FILE: 50}, endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match=f"listed with 50 bytes, has {len(DATA)}"):
            store.read(FILE, 0, 10)


def test_branch_that_moves_while_it_is_read(server, tmp_path):
    with HubStore(REPO, "main", endpoint=server.endpoint) as store:
        store.read(FILE, 0, 10)
        write(tmp_path / REPO / "main", {"new.bin": b"1"})
        with pytest.raises(StorageError, match="main moved from commit"):
            store.read("sub/b.bin", 0, 3)


def test_missing_file_on_the_hub(server):
    with HubStore(REPO, "main", files={"gone.bin": 5}, endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match=r"gone\.bin.*status 404, EntryNotFound"):
            store.read("gone.bin", 0, 5)


@pytest.mark.parametrize(("host", "method"), [("cdn", "GET"), ("api", "HEAD")])
def test_interrupt_ends_the_wait_that_the_server_asked_for(server, store, host, method):
    patient = Fault("status", host, method, status=429, headers={"Retry-After": "30"}, times=100)
    server.faults = [patient]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.read, FILE, 1000 * i, 1000) for i in range(8)]
        while patient.times == 100:
            time.sleep(0.01)
        start = time.monotonic()
        store.interrupt()
        for read in reads:
            with pytest.raises(StorageError, match=f"{FILE}.*: interrupted"):
                read.result(timeout=10)
        assert time.monotonic() - start < 5
    store.close()
    server.faults = []
    assert store.read(FILE, 0, 10) == DATA[:10]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("stall", seconds=30.0, times=100),
        Fault("stall", host="api", method="HEAD", seconds=30.0, times=100),
        Fault("hang", seconds=30.0, after=100_000, times=100),
    ],
    ids=["headers", "resolving", "body"],
)
def test_interrupt_ends_a_stall_at_once(server, store, fault):
    server.faults = [fault]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.read, FILE, 1000 * i, 200_000) for i in range(8)]
        while fault.times == 100:
            time.sleep(0.01)
        time.sleep(0.1)
        start = time.monotonic()
        store.interrupt()
        for read in reads:
            with pytest.raises(StorageError, match=f"{FILE}.*: interrupted"):
                read.result(timeout=10)
        assert time.monotonic() - start < 10
    server.faults = []
    with pytest.raises(StorageError, match="interrupted"):
        store.read(FILE, 0, 10)
    store.close()
    assert store.read(FILE, 0, 10) == DATA[:10]


def test_retries_are_counted(server, store):
    assert store.retries == 0
    server.faults = [Fault("status", status=503, times=2), Fault("cut", after=100_000)]
    store.read(FILE, 1000, 900_000)
    assert store.retries == 3


# The cache of huggingface_hub


@pytest.fixture
def cached(server, tmp_path, monkeypatch):
    """Commit of main, of which the cache holds one file; the server's log is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hf_hub_download(REPO, FILE, endpoint=server.endpoint, revision="main")
    commit = commit_of(server)
    server.log.clear()
    return commit


def test_cached_file_is_read_without_a_request(server, cached):
    files = {FILE: len(DATA), "sub/b.bin": 3}
    with HubStore(REPO, cached, files=files, endpoint=server.endpoint) as store:
        assert store.read(FILE, 1000, 5000) == DATA[1000:6000]
        assert server.log == []
        assert store.identity(FILE) is None
        assert store.read("sub/b.bin", 0, 3) == b"xyz"
        assert store.identity("sub/b.bin") == f"hf://{REPO}@{cached}"
    assert {r.file for r in server.log} == {"sub/b.bin"}


def test_cached_file_of_a_folder_is_read_without_a_request(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hf_hub_download(REPO, "sub/b.bin", endpoint=server.endpoint, cache_dir=tmp_path / "cache")
    commit = commit_of(server)
    del server.log[:]
    with HubStore(f"{REPO}/sub", commit, files={"b.bin": 3}, endpoint=server.endpoint) as store:
        assert store.read("b.bin", 0, 3) == b"xyz"
    assert server.log == []


def test_cached_file_of_another_commit_is_not_taken(server, cached, tmp_path):
    """Neither by hash nor by a branch that has moved since the cache saw it."""
    write(tmp_path / REPO / "main", {FILE: DATA[::-1]})
    moved = commit_of(server)
    assert moved != cached
    for revision in ("main", moved):
        with HubStore(REPO, revision, files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
            assert store.read(FILE, 0, 10) == DATA[::-1][:10]
            assert store.read(FILE, 50, 10) == DATA[::-1][50:60]


def test_branch_is_read_from_the_cache_once_the_hub_told_its_commit(server, cached):
    files = {FILE: len(DATA), "sub/b.bin": 3}
    with HubStore(REPO, "main", files=files, endpoint=server.endpoint) as store:
        store.read("sub/b.bin", 0, 3)
        assert store.read(FILE, 7, 10) == DATA[7:17]
    assert {r.file for r in server.log} == {"sub/b.bin"}


def test_ref_that_is_named_like_a_commit_leads_nowhere(server, cached, tmp_path):
    """The lookup of huggingface_hub would follow it to another commit's file."""
    other = "0" * 40
    repository = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}"
    (repository / "refs" / other).write_text(cached)
    with HubStore(REPO, other, files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match="status 404, RevisionNotFound"):
            store.read(FILE, 0, 10)


def test_cached_file_of_another_size_is_not_taken(server, cached, tmp_path):
    blob = next(p for p in (tmp_path / "cache").rglob("blobs/*") if p.is_file())
    blob.write_bytes(DATA[:1000])
    with HubStore(REPO, cached, files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
        assert store.read(FILE, 500, 1000) == DATA[500:1500]
    assert server.count("GET", "cdn") == 1


def test_cached_file_that_is_cut_while_it_is_read_comes_from_the_hub(server, cached, tmp_path):
    with HubStore(REPO, cached, files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
        assert store.read(FILE, 0, 10) == DATA[:10]
        blob = next(p for p in (tmp_path / "cache").rglob("blobs/*") if p.is_file())
        blob.write_bytes(DATA[:1000])
        assert store.read(FILE, 500, 1000) == DATA[500:1500]
    assert server.count("GET", "cdn") == 1


@pytest.mark.parametrize("revision", ["commit", "main"])
def test_cached_file_is_read_offline(server, cached, monkeypatch, revision):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = {FILE: len(DATA), "sub/b.bin": 3}
    at = cached if revision == "commit" else "main"
    with HubStore(REPO, at, files=files, endpoint=server.endpoint) as store:
        assert store.read(FILE, 7, 10) == DATA[7:17]
        with pytest.raises(StorageError, match=r"sub/b\.bin: HF_HUB_OFFLINE is set"):
            store.read("sub/b.bin", 0, 3)
    assert server.log == []


# Access


def test_missing_repository(server):
    with pytest.raises(RunNotFound, match="hf://owner/none: no such repository, or a private one"):
        list_refs("owner/none", server.endpoint)


def test_private_repository_needs_the_token(server):
    server.private.add(REPO)
    with pytest.raises(RunNotFound, match="private one that this token may not read"):
        list_refs(REPO, server.endpoint)
    commit = dict(list_refs(REPO, server.endpoint, "hf_good"))["main"]
    with HubStore(REPO, commit, endpoint=server.endpoint, token="hf_good") as store:
        assert store.read(FILE, 0, 10) == DATA[:10]
    assert not any(r.authorized for r in server.log if r.host == "cdn")


def test_gated_repository(server):
    files = {FILE: len(DATA)}
    server.gated.add(REPO)
    with pytest.raises(RunNotFound, match="gated: ask for access"):
        list_refs(REPO, server.endpoint)
    with HubStore(REPO, "main", files=files, endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match="status 403, GatedRepo, Access to model"):
            store.read(FILE, 0, 10)
    with HubStore(REPO, "main", files=files, endpoint=server.endpoint, token="hf_good") as store:
        assert store.read(FILE, 0, 10) == DATA[:10]


def test_renamed_repository_is_found(server):
    server.renamed["old/name"] = REPO
    commit = dict(list_refs("old/name", server.endpoint))["main"]
    assert FILE in list_files("old/name", commit, server.endpoint)
    with HubStore("old/name", commit, endpoint=server.endpoint) as store:
        assert store.read(FILE, 7, 10) == DATA[7:17]


def test_missing_revision(server):
    with pytest.raises(RunNotFound, match=f"hf://{REPO}@nope: the repository has no such branch"):
        list_files(REPO, "nope", server.endpoint)


def test_bad_name(server):
    with pytest.raises(RunNotFound, match="not a repository name"):
        list_refs("a b/c/d", server.endpoint)


@pytest.mark.parametrize(("status", "kind"), [(503, StorageError), (401, RunNotFound)])
def test_hub_that_is_down_is_told_from_one_that_refuses(server, status, kind):
    server.faults = [Fault("status", host="api", status=status, times=100)]
    with pytest.raises(kind, match=f"hf://{REPO}"):
        list_refs(REPO, server.endpoint)


def test_no_network():
    with pytest.raises(StorageError, match=f"hf://{REPO}: the Hub can't be reached"):
        list_refs(REPO, "http://127.0.0.1:9")


def test_offline_switch(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with HubStore(REPO, "main", files={FILE: len(DATA)}, endpoint=server.endpoint) as store:
        with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
            store.read(FILE, 0, 10)
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
        list_refs(REPO, server.endpoint)
    assert server.log == []


# The double itself: huggingface_hub's own client must be content with it


def test_the_hubs_own_client_works_against_the_double(server, tmp_path):
    api = HfApi(endpoint=server.endpoint)
    assert {b.name for b in api.list_repo_refs(REPO).branches} == {"main", "ckpt_160"}
    assert api.model_info(REPO, revision="main").sha == commit_of(server)
    path = hf_hub_download(REPO, FILE, endpoint=server.endpoint, cache_dir=tmp_path / "cache")
    with open(path, "rb") as file:
        assert file.read() == DATA


def test_mirror_whose_redirect_has_a_page_of_its_own():
    class Mirror(Quiet):
        def do_HEAD(self):
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.invalid/a.bin")
            self.send_header("Content-Length", "154")
            self.end_headers()

    with running(Mirror) as mirror:
        endpoint = f"http://127.0.0.1:{mirror.server_port}"
        store = HubStore(REPO, "main", files={"a.bin": 10}, endpoint=endpoint, token="secret")
        target = store.locate("a.bin")
    assert target.url == "http://elsewhere.invalid/a.bin" and target.signed
    assert "Authorization" not in target.headers
