import base64
import concurrent.futures
import contextlib
import http.server
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hub_server import Fault, HubServer
from servers import Files, Quiet, certificate, proxy, running

from analysis360.errors import StorageError
from analysis360.storage import open_store
from analysis360.storage.http import HttpStore
from analysis360.storage.transport import Patience, Pools, wait_asked
from analysis360.testing import StoreTests

REPO = "owner/name"


@contextlib.contextmanager
def served(tmp_path, contents):
    """The files of one branch, at a plain address: the hub's resolve route."""
    for path, data in contents.items():
        full = tmp_path / REPO / "main" / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data)
    with HubServer(tmp_path) as server:
        yield server, f"{server.endpoint}/{REPO}/resolve/main/"


class TestHttpStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path):
        sizes = {path: len(data) for path, data in self.contents.items()}
        with served(tmp_path, self.contents) as (_, root), open_store(root, files=sizes) as store:
            yield store


def test_redirect_is_followed_once_per_file_and_the_token_stays(tmp_path):
    with served(tmp_path, {"a.bin": bytes(1000)}) as (server, root):
        with HttpStore(root, files={"a.bin": 1000}, token="secret") as store:
            for i in range(5):
                store.read("a.bin", i * 10, 10)
        assert server.count("GET", "api") == 1
        assert server.count("GET", "cdn") == 5
        assert {(r.host, r.authorized) for r in server.log} == {("api", True), ("cdn", False)}


def test_listing_is_needed():
    with pytest.raises(StorageError, match="http://host/: an HTTP server has no listing"):
        open_store("http://host/")


def test_wrong_size_in_the_listing(tmp_path):
    with served(tmp_path, {"a.bin": bytes(1000)}) as (_, root):
        with HttpStore(root, files={"a.bin": 999}) as store:
            with pytest.raises(StorageError, match="listed with 999 bytes, the server says 1000"):
                store.read("a.bin", 0, 10)


def test_whole_small_file_may_come_with_status_200(tmp_path):
    with served(tmp_path, {"a.bin": b"0123456789"}) as (server, root):
        server.faults = [Fault("ignore_range")]
        with HttpStore(root, files={"a.bin": 10}) as store:
            assert store.read("a.bin", 0, 10) == b"0123456789"


def test_redirect_loop_ends():
    class Loop(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Loop)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with HttpStore(f"http://127.0.0.1:{server.server_port}/", files={"a": 5}) as store:
            with pytest.raises(StorageError, match="a: bytes 0…5: more than 5 redirects"):
                store.read("a", 0, 5)
    finally:
        server.shutdown()
        server.server_close()


def test_refused_connection_is_given_up_with_an_account():
    with HttpStore("http://127.0.0.1:9/", files={"a": 5}, attempts=3, backoff=0.001) as store:
        with pytest.raises(StorageError, match=r"a: bytes 0…5: .*given up after 3 attempts"):
            store.read("a", 0, 5)


def test_retry_after_in_seconds_and_as_a_date():
    assert wait_asked({"Retry-After": "3"}) == 3.0
    assert wait_asked({"Retry-After": "99999"}) == 300.0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 18 <= wait_asked({"Retry-After": soon}) <= 20
    assert wait_asked({"Retry-After": "soon"}) is None


def test_patience_doubles_and_ends():
    waits = []

    class Clock(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    patience = Patience("what", attempts=4, backoff=1.0, interrupted=Clock())
    for _ in range(3):
        patience.failed("broken")
    assert len(waits) == 3
    for wait, low in zip(waits, (0.5, 1.0, 2.0)):
        assert low <= wait <= 3 * low
    with pytest.raises(StorageError, match="what: broken; given up after 4 attempts"):
        patience.failed("broken")


def test_proxies_and_roots_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass@proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.internal")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/roots.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    pools = Pools(10.0)
    through = pools.of("https://huggingface.co/a")
    assert through.proxy.host == "proxy.example" and through.proxy.port == 3128
    assert "proxy-authorization" in through.proxy_headers
    assert through.connection_pool_kw["ca_cert_dir"] == str(tmp_path)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    direct = pools.of("http://127.0.0.1:80/a")
    assert direct.proxy is None
    assert direct.connection_pool_kw["ca_certs"] == "/etc/roots.pem"
    assert pools.of("https://cas.internal/a") is direct
    assert pools.of("http://huggingface.co/a") is not through
    pools.close()


# TLS and proxies, with real ones

DATA = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    tls, cert = certificate(tmp_path_factory.mktemp("tls"))
    files = Files({"a.bin": DATA})
    with files.served(tls) as root:
        yield files, root, cert, tls


@pytest.fixture
def _no_roots(monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)


@pytest.mark.usefixtures("_no_roots")
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_https_with_roots_of_ones_own(secured, monkeypatch, variable):
    _, root, cert, _ = secured
    monkeypatch.setenv(variable, str(cert))
    with open_store(root, files={"a.bin": len(DATA)}) as store:
        assert store.read("a.bin", 1000, 900_000) == DATA[1000:901_000]
        assert store.retries == 0


@pytest.mark.usefixtures("_no_roots")
def test_https_with_an_unknown_certificate_is_refused_at_once(secured):
    files, root, _, _ = secured
    asked = len(files.log)
    with open_store(root, files={"a.bin": len(DATA)}) as store:
        with pytest.raises(StorageError, match="a.bin: bytes 0…5: .*CERTIFICATE_VERIFY_FAILED"):
            store.read("a.bin", 0, 5)
        assert store.retries == 0
    assert len(files.log) == asked


def test_http_through_a_proxy(monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    files = Files({"a.bin": DATA})
    with files.served() as root, proxy() as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://us%40r:pa%3Ass@{address}")
        with open_store(root, files={"a.bin": len(DATA)}) as store:
            assert store.read("a.bin", 5, 1000) == DATA[5:1005]
    login = base64.b64encode(b"us@r:pa:ss").decode()
    assert asked == [f"GET {root}a.bin Basic {login}"]


@pytest.mark.usefixtures("_no_roots")
def test_https_through_the_tunnel_of_a_proxy(secured, monkeypatch):
    _, root, cert, _ = secured
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", address)
        with open_store(root, files={"a.bin": len(DATA)}) as store:
            assert store.read("a.bin", 5, 1000) == DATA[5:1005]
            assert store.read("a.bin", 500_000, 100_000) == DATA[500_000:600_000]
    assert len(asked) == 1 and asked[0].startswith("CONNECT 127.0.0.1:")


# Interrupts


@pytest.mark.usefixtures("_no_roots")
def test_interrupt_ends_a_read_that_stalls_under_tls(secured, monkeypatch):
    _, _, cert, tls = secured
    release = threading.Event()

    class Stalling(Quiet):
        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Length", "1000")
            self.send_header("Content-Range", "bytes 0-999/1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            release.wait(30)

    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with running(Stalling, tls) as server:
        with HttpStore(f"https://127.0.0.1:{server.server_port}/", files={"a": 1000}) as store:
            assert ended_within(store, "a", 1000) < 1
            release.set()


def test_interrupt_ends_a_handshake_that_stalls():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        root = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        with HttpStore(root, files={"a": 1000}) as store:
            assert ended_within(store, "a", 1000) < 1


def ended_within(store, path, nbytes):
    """Seconds from the interrupt to the error of a read that stalls."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        read = pool.submit(store.read, path, 0, nbytes)
        time.sleep(0.2)
        assert not read.done()
        start = time.monotonic()
        store.interrupt()
        with pytest.raises(StorageError, match=f"{path}: bytes 0…{nbytes}: interrupted"):
            read.result(10)
        return time.monotonic() - start


def test_connections_are_forgotten_when_they_close():
    files = Files({"a.bin": DATA})
    with files.served() as root:
        store = HttpStore(root, files={"a.bin": len(DATA)})
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: store.read("a.bin", i, 100_000), range(40)))
        sockets = store._pools._sockets
        assert 1 <= len(sockets) <= 4
        store.close()
        assert len(sockets) == 0


# Answers that are not what they seem


@contextlib.contextmanager
def answering(status, headers, body=b""):
    """A store of one file of ten bytes, and a server that always says the same."""

    class Handler(Quiet):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = headers.get("Connection") == "close"

    with running(Handler) as server:
        root = f"http://127.0.0.1:{server.server_port}/"
        with HttpStore(root, files={"a.bin": 10}, backoff=0.01) as store:
            yield store


def test_whole_file_of_unknown_length_must_end_where_the_listing_says():
    for said, body in (
        ({"Connection": "close"}, b"%b"),
        ({"Transfer-Encoding": "chunked"}, b"a\r\n%b\r\n0\r\n\r\n"),
    ):
        with answering(200, said, body.replace(b"%b", b"0123456789")) as store:
            assert store.read("a.bin", 0, 10) == b"0123456789"
    with answering(200, {"Connection": "close"}, b"0123456789abc") as store:
        with pytest.raises(StorageError, match=r"a\.bin: bytes 0…10: .*10 bytes, has more"):
            store.read("a.bin", 0, 10)


def test_redirect_to_what_is_no_address_is_said_at_once():
    with answering(302, {"Location": "http://[bad", "Content-Length": "0"}) as store:
        with pytest.raises(StorageError, match=r"a\.bin: bytes 0…10: Invalid.*attempt 1"):
            store.read("a.bin", 0, 10)
