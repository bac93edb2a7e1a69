"""Where bytes are: folders, the Hub, plain HTTP servers, memory. A `Store` reads byte ranges."""

from __future__ import annotations

import os
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
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
) -> Store:
    """Open the place where a checkpoint's files lie.

    Parameters
    ----------
    uri : str
        A folder or file (``file://`` or plain path), ``hf://owner/name``,
        ``http(s)://host/root/``, ``memory://id``, or what fsspec knows: ``s3://``, ``gs://``…
    revision : str, optional
        On the Hub a commit hash, branch or tag. For a folder, of this machine or by fsspec, its
        `fingerprint`, which is then checked.
    files : mapping of str to int, optional
        Paths and sizes if known, so that nothing need be listed; needed for ``http(s)``.
    endpoint, token : str, optional
        Of the Hub; by default those of huggingface_hub.
    cache_dir : str or path-like, optional
        Folder in which ranges that were fetched are kept; see `CachedStore`. Files of this machine
        never are.
    cache_size : int, optional
        Bytes that everything kept in that folder may take; by default 100 GB.

    Returns
    -------
    Store

    Raises
    ------
    RunNotFound
        If there is no such folder, file or repository.
    StorageError
        If the scheme is unknown or its package is not installed, a folder is not what its revision
        says, or `cache_dir` can't be written to.

    Examples
    --------
    >>> open_store("tape://host/run")
    Traceback (most recent call last):
    ...
    analysis360.errors.StorageError: tape://host/run: unknown scheme 'tape'; known: a path, file, hf, http, https, memory, and those of fsspec
    """  # noqa: E501 - the message is one line
    store = _open(uri, revision, files, endpoint, token)
    if cache_dir is None or uri.startswith("memory://"):
        return store
    from analysis360.storage.cache import CACHE_SIZE, CachedStore
    from analysis360.storage.local import LocalStore

    if isinstance(store, LocalStore):
        return store
    return CachedStore(store, cache_dir, CACHE_SIZE if cache_size is None else cache_size)


def _open(
    uri: str,
    revision: str | None,
    files: Mapping[str, int] | None,
    endpoint: str | None,
    token: str | None,
) -> Store:
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
    return _fsspec(uri, scheme, revision, files)


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


def _fsspec(uri: str, scheme: str, revision: str | None, files: Mapping[str, int] | None) -> Store:
    from analysis360.storage.fsspec_store import FsspecStore, is_known

    if not is_known(scheme):
        schemes = "a path, file, hf, http, https, memory, and those of fsspec"
        raise StorageError(f"{uri}: unknown scheme {scheme!r}; known: {schemes}")
    known = revision is not None and revision.startswith("remote:")
    store = FsspecStore(uri, files=files, revision=revision if known else None)
    store.check()
    return store
