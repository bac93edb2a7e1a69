"""Small real servers: files over HTTP or HTTPS, and a proxy that forwards and tunnels."""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Say nothing of clients that hang up, or don't like the certificate."""


@contextlib.contextmanager
def running(handler, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), handler)
    if tls is not None:
        # the handshake belongs to the connection's own thread
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Files:
    """Files in memory, with strong ETags, as a plain server gives them."""

    def __init__(self, contents: Mapping[str, bytes], weak: bool = False) -> None:
        self.contents, self.weak = dict(contents), weak
        self.log: list[tuple[str, str, str]] = []

    @contextlib.contextmanager
    def served(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        files = self

        class Handler(Quiet):
            def do_GET(self):
                files.log.append((self.command, self.path, self.headers.get("Range", "")))
                data = files.contents.get(unquote(self.path.lstrip("/")))
                if data is None:
                    self.send_error(404)
                    return
                tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(data))
                self.send_response(206 if asked else 200)
                self.send_header("ETag", f"W/{tag}" if files.weak else tag)
                self.send_header("Content-Length", str(stop - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data[start:stop])

            do_HEAD = do_GET

        with running(Handler, tls) as server:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/"

    def ranges(self) -> list[tuple[int, int]]:
        """Offset and bytes of what was asked for."""
        found = [re.findall(r"\d+", asked) for method, _, asked in self.log if method == "GET"]
        return [(int(a), int(b) - int(a) + 1) for a, b in found]


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Address of a proxy, and the requests it got."""
    asked: list[str] = []

    class Handler(Quiet):
        def do_GET(self):
            asked.append(f"{self.command} {self.path} {self.headers.get('Proxy-Authorization')}")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(
                urllib.request.Request(self.path, headers={"Range": self.headers["Range"]})
            ) as found:
                self.send_response(found.status)
                for name in ("Content-Length", "Content-Range", "ETag"):
                    self.send_header(name, found.headers[name])
                self.end_headers()
                self.wfile.write(found.read())

        def do_CONNECT(self):
            asked.append(f"{self.command} {self.path} {self.headers.get('Proxy-Authorization')}")
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port)), 10) as far:
                self.send_response(200)
                self.end_headers()
                pair = {self.connection: far, far: self.connection}
                while True:
                    for side in select.select(list(pair), [], [], 10)[0]:
                        data = side.recv(65536)
                        if not data:
                            self.close_connection = True
                            return
                        pair[side].sendall(data)

    with running(Handler) as server:
        yield f"127.0.0.1:{server.server_port}", asked


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for 127.0.0.1, and the file of the certificate to trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert
