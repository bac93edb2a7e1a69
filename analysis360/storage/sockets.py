"""Connections that another thread can end while somebody waits on them.

A read that waits in ``recv`` cannot be told to stop: closing its socket from another thread does
not wake it, and may close a descriptor that was given to something else meanwhile. ``shutdown``
does wake it, so each connection registers its socket here.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["Sockets"]


class Sockets:
    """The open sockets of one store, to be shut down together.

    Attributes
    ----------
    classes : dict of str to type
        Connection pools by scheme whose connections register here, for
        ``PoolManager.pool_classes_by_scheme``.
    """

    def __init__(self) -> None:
        # Weakly: a body may be read to its end after its connection was given up
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._ended = False
        self.classes = _pool_classes(self)

    def add(self, sock: socket.socket) -> None:
        """Register a socket; it is forgotten when it is closed."""
        with self._lock:
            self._open.add(sock)
            if self._ended:
                _shut(sock)

    def shutdown(self) -> None:
        """End all connections, and each new one as soon as it is made."""
        with self._lock:
            self._ended = True
            for sock in list(self._open):
                _shut(sock)

    def __len__(self) -> int:
        with self._lock:
            return sum(sock.fileno() >= 0 for sock in list(self._open))


def _shut(sock: socket.socket) -> None:
    """End a connection, and leave the state of TLS to the thread that reads."""
    with contextlib.suppress(OSError):  # the other side was faster
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _pool_classes(sockets: Sockets) -> dict[str, type[HTTPConnectionPool]]:
    """Pools of urllib3 whose connections tell `sockets` of theirs.

    ``_new_conn`` is where urllib3's own SOCKS support plugs in.
    """

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            sockets.add(sock)
            return sock

    class Secure(HTTPSConnection):
        _twin: socket.socket | None = None

        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            # TLS takes the socket over, and shows its own only after the handshake
            self._twin = sock.dup()
            sockets.add(self._twin)
            return sock

        def connect(self) -> None:
            try:
                super().connect()
                sock = getattr(self.sock, "socket", self.sock)  # TLS in the TLS of a proxy
                if isinstance(sock, socket.socket):
                    sockets.add(sock)
            finally:
                if self._twin is not None:
                    self._twin.close()
                    self._twin = None

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
