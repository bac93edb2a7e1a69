"""Connections and patience: pools, proxies, TLS roots, back-off. Knows nothing of files."""

from __future__ import annotations

import importlib
import os
import random
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from analysis360.errors import StorageError
from analysis360.storage.sockets import Sockets

__all__ = ["Patience", "Pools", "Tally", "is_transient", "wait_asked"]

_LONGEST_WAIT = 300.0  # seconds; the Hub's limits are counted over five minutes
_LONGEST_BACKOFF = 30.0  # seconds
_CONNECTIONS = 16  # kept alive per host


class Pools:
    """Connection pools, direct and by proxy, as the environment tells.

    ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` are honoured, and ``REQUESTS_CA_BUNDLE`` or
    ``SSL_CERT_FILE`` for the TLS roots.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = urllib3.Timeout(connect=min(timeout, 20.0), read=timeout)
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._sockets = Sockets()
        self._lock = threading.Lock()

    def of(self, url: str) -> urllib3.PoolManager:
        """Pool through which `url` is reached."""
        proxy = _proxy(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._make(proxy)
            return self._pools[proxy]

    def _make(self, proxy: str) -> urllib3.PoolManager:
        options: dict[str, Any] = {
            "maxsize": _CONNECTIONS, "timeout": self._timeout, **_roots(),
        }  # fmt: skip
        if not proxy:
            made = urllib3.PoolManager(**options)
        else:
            auth = urlsplit(proxy)
            if auth.username:
                secret = f"{unquote(auth.username)}:{unquote(auth.password or '')}"
                options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=secret)
            made = urllib3.ProxyManager(proxy, **options)
        made.pool_classes_by_scheme = self._sockets.classes
        return made

    def interrupt(self) -> None:
        """End all connections at once, whoever waits on them, until `close`.

        One that is being made ends when it is made, or fails to be within 20 s.
        """
        with self._lock:
            self._sockets.shutdown()

    def close(self) -> None:
        """Close all connections; later requests open new ones."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()
            self._sockets = Sockets()  # those that were interrupted stay so


def _proxy(url: str) -> str:
    """Proxy for an address; empty if it is reached directly."""
    parts, proxies = urlsplit(url), getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    return found if "://" in found else f"http://{found}"


def _roots() -> dict[str, str]:
    """TLS roots: those named in the environment, the system's, or certifi's if there are none."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if named:
        return {"ca_cert_dir" if os.path.isdir(named) else "ca_certs": named}
    system = ssl.get_default_verify_paths()
    if system.cafile or (system.capath and os.listdir(system.capath)):
        return {}
    try:
        return {"ca_certs": importlib.import_module("certifi").where()}
    except ImportError:
        return {}


class Tally:
    """A number that several threads count up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, count: int = 1) -> None:
        """Count on."""
        with self._lock:
            self.value += count


class Patience:
    """Counts failures in a row, waits between them, and gives up with a full account.

    Parameters
    ----------
    what : str
        Start of the error message: where and what was being read.
    attempts : int
        Failures in a row that end it.
    backoff : float
        Seconds before the first repetition.
    interrupted : threading.Event, optional
        Ends waiting when it is set.
    retried : callable, optional
        Told of each failure that is tried again.
    """

    def __init__(
        self,
        what: str,
        attempts: int,
        backoff: float,
        interrupted: threading.Event | None = None,
        retried: Callable[[], None] | None = None,
    ) -> None:
        self.what, self.attempts, self.backoff = what, attempts, backoff
        self.interrupted = interrupted or threading.Event()
        self.retried = retried
        self.failures = 0

    def check(self) -> None:
        """Go on only if nobody has interrupted.

        Raises
        ------
        StorageError
            If somebody has.
        """
        if self.interrupted.is_set():
            raise StorageError(f"{self.what}: interrupted")

    def progress(self) -> None:
        """Forget earlier failures: something arrived."""
        self.failures = 0

    def failed(self, reason: str, wait: float | None = None) -> None:
        """Wait before the next attempt, as long as the server asked or by exponential back-off.

        Raises
        ------
        StorageError
            If that was the last attempt, or waiting was interrupted.
        """
        self.check()  # what broke was perhaps broken off
        self.failures += 1
        if self.failures >= self.attempts:
            raise StorageError(
                f"{self.what}: {reason}; given up after {self.failures} attempts without progress"
            )
        if self.retried is not None:
            self.retried()
        if wait is None:
            doubled = self.backoff * 2 ** (self.failures - 1)
            wait = min(doubled, _LONGEST_BACKOFF) * random.uniform(0.5, 1.5)
        self.interrupted.wait(wait)
        self.check()


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, 300 at most; None if it doesn't say.

    Read are ``Retry-After`` (seconds or a date) and ``t=`` of the Hub's ``RateLimit``.

    Examples
    --------
    >>> wait_asked({"Retry-After": "7"}), wait_asked({"RateLimit": '"api";r=0;t=55'})
    (7.0, 55.0)
    >>> wait_asked({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), wait_asked({})
    (0.0, None)
    """
    said = headers.get("Retry-After", "").strip()
    seconds: float | None = None
    if said.isdecimal():
        seconds = float(said)
    elif said:
        try:
            at = parsedate_to_datetime(said)
            seconds = (at.astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except ValueError:
            seconds = None
    else:
        limit = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
        seconds = float(limit[1]) if limit else None
    return None if seconds is None else min(max(seconds, 0.0), _LONGEST_WAIT)


def is_transient(error: Exception) -> bool:
    """Whether trying again may help: not if the certificate or the address itself is wrong."""
    wrong = (ValueError, urllib3.exceptions.LocationValueError, urllib3.exceptions.InvalidHeader)
    return not isinstance(error, wrong) and "CERTIFICATE_VERIFY_FAILED" not in str(error)
