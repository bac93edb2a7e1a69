"""Where bytes are: folders, the Hub, plain HTTP servers, memory. A `Store` reads byte ranges."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import url2pathname

from analysis360.errors import StorageError
from analysis360.storage.base import Store

__all__ = ["Store", "open_store"]


def open_store(
    uri: str,
    revision: str | None = None,
    *,
    files: Mapping[str, int] | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Store:
    """Open the place where a checkpoint's files lie.

    Parameters
    ----------
    uri : str
        A folder or file (``file://`` or plain path), ``hf://owner/name``, ``http(s)://host/root/``
        or ``memory://id``.
    revision : str, optional
        On the Hub a commit hash, branch or tag. For a folder its `fingerprint`, which is then
        checked.
    files : mapping of str to int, optional
        Paths and sizes if known, so that nothing need be listed; needed for ``http(s)``.
    endpoint, token : str, optional
        Of the Hub; by default those of huggingface_hub.

    Returns
    -------
    Store

    Raises
    ------
    RunNotFound
        If there is no such folder, file or repository.
    StorageError
        If the scheme is unknown, or a folder is not what its revision says.

    Examples
    --------
    >>> open_store("ftp://host/run")
    Traceback (most recent call last):
    ...
    analysis360.errors.StorageError: ftp://host/run: unknown scheme 'ftp'; known: a path, file, hf, http, https, memory
    """  # noqa: E501 - the message is one line
    scheme, found, rest = uri.partition("://")
    if not found:
        return _local(uri, revision, files)
    if scheme == "file":
        return _local(url2pathname(urlsplit(uri).path), revision, files)
    if scheme == "memory":
        from analysis360.storage.memory import MemoryStore

        return MemoryStore.find(rest)
    if scheme == "hf":
        from analysis360.storage.hub import HubStore

        return HubStore(rest, revision, files=files, endpoint=endpoint, token=token)
    if scheme in ("http", "https"):
        from analysis360.storage.http import HttpStore

        return HttpStore(uri, files=files, token=token)
    known = "a path, file, hf, http, https, memory"
    raise StorageError(f"{uri}: unknown scheme {scheme!r}; known: {known}")


def _local(path: str, revision: str | None, files: Mapping[str, int] | None) -> Store:
    from analysis360.storage.local import LocalStore, fingerprint

    store = LocalStore(path, files=files)
    if revision is not None and revision.startswith("local:"):
        now = fingerprint(path)
        if now != revision:
            raise StorageError(
                f"{path}: files were changed since it was opened as {revision}; now it is {now}"
            )
    return store
