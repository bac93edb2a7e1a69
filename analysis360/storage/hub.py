"""Checkpoints on the Hugging Face Hub, read by byte range: never a whole file, nothing on disk.

A file that huggingface_hub has in its cache, of the same commit, is read from there. Each other
file's address is resolved once per store. The Hub answers with a signed address at another host, to
which the ranges go directly: its limits are on resolving, not on reading. The token stays with the
Hub's own host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urljoin

from analysis360.errors import RunNotFound, StorageError
from analysis360.storage.http import BUSY, HttpRanges, Target, origin, reason
from analysis360.storage.local import LocalStore

__all__ = ["HubStore", "list_content", "list_files", "list_refs"]

_HOPS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubStore(HttpRanges):
    """One commit of a repository on the Hub.

    Parameters
    ----------
    repo : str
        ``"owner/name"``, or ``"owner/name/folder"`` for the files below a folder of it, with
        ``@revision`` at its end if `revision` is not given.
    revision : str, optional
        Commit hash, branch or tag; ``"main"`` by default. Give a commit hash to be sure that a
        later run reads the same bytes.
    files : mapping of str to int, optional
        Paths and sizes if known; the repository is listed otherwise.
    endpoint, token : str, optional
        By default those of huggingface_hub (``HF_ENDPOINT``, ``HF_TOKEN``, the login on disk).
    attempts, backoff, timeout
        See `HttpRanges`.

    Notes
    -----
    A file in the cache of huggingface_hub is read from there, and nothing is asked of the Hub for
    it, if it is of the same commit and has the listed size. Of a branch or tag the commit is known
    once the Hub has told it, which is after the first file was resolved; with ``HF_HUB_OFFLINE``
    set it is what the cache knows the branch as.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        files: Mapping[str, int] | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        attempts: int = 6,
        backoff: float = 0.5,
        timeout: float = 60.0,
    ) -> None:
        name, _, at = repo.strip("/").partition("@")
        owner, _, rest = name.partition("/")
        short, _, self.folder = rest.partition("/")
        self.repo = f"{owner}/{short}" if rest else name
        self.revision = revision or at or "main"
        self._endpoint, self._asked_token = _endpoint(endpoint), token
        self._files = dict(files) if files is not None else None
        self._commit = self.revision if _COMMIT.fullmatch(self.revision) else None
        self._snapshot: LocalStore | None = None  # all files of a commit are in one folder
        self._is_cached: dict[str, bool] = {}
        super().__init__(
            f"hf://{name}@{self.revision[:12]}", self._endpoint, token=_token(token),
            attempts=attempts, backoff=backoff, timeout=timeout,
        )  # fmt: skip

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        if self._files is None:
            self._files = list_files(
                self.repo, self.revision, self._endpoint, self._asked_token, folder=self.folder
            )
        return self._files

    def identity(self, path: str) -> str | None:  # noqa: D102 - inherited
        if self._in_cache(path) is not None or self._commit is None:
            return None
        below = f"/{self.folder}" if self.folder else ""
        return f"hf://{self.repo}{below}@{self._commit}"

    def _full(self, path: str) -> str:
        """Path in the repository."""
        return f"{self.folder}/{path}" if self.folder else path

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        self.check_range(path, offset, len(buffer))
        snapshot = self._in_cache(path)
        if snapshot is not None:
            try:
                return snapshot.read_into(path, offset, buffer)
            except StorageError:  # removed or cut since: the Hub still has it
                self._is_cached[path] = False
        super().read_into(path, offset, buffer)

    def _in_cache(self, path: str) -> LocalStore | None:
        """The cache's folder of this commit, if it holds this file whole."""
        if path not in self._is_cached:
            commit = self._commit or _offline_commit(self.repo, self.revision)
            if commit is None:
                return None  # it may be known later
            self._commit = commit
            folder = _cached_snapshot(self.repo, commit, self._full(path), self.files()[path])
            if folder is not None and self._snapshot is None:
                self._snapshot = LocalStore(folder / self.folder, files=self.files())
            self._is_cached[path] = folder is not None
        return self._snapshot if self._is_cached[path] else None

    def close(self) -> None:  # noqa: D102
        if self._snapshot is not None:
            self._snapshot.close()
        super().close()

    def locate(self, path: str) -> Target:
        """Resolve a file's address: one HEAD, or a few if the repository was renamed."""
        _refuse_offline(f"{self.uri}: {path}")
        at = f"{quote(self.revision, safe='')}/{quote(self._full(path))}"
        url = f"{self._endpoint}/{self.repo}/resolve/{at}"
        for _ in range(_HOPS):
            said, status = self._head(path, url)
            self._check_commit(path, said)
            moved = urljoin(url, said["Location"]) if status >= 300 else url
            if status < 300 or origin(moved) != origin(url) or "X-Linked-Size" in said:
                self._check_size(path, said)
                return Target(moved, self.headers_for(moved), signed=moved != url)
            url = moved  # renamed, or a small file served by another route of the same host
        raise StorageError(f"{self.uri}: {path}: more than {_HOPS} redirects while resolving")

    def _head(self, path: str, url: str) -> tuple[Mapping[str, str], int]:
        response = self.head(path, url)
        status, said = response.status, response.headers
        if status == 200 or (300 <= status < 400 and said.get("Location")):
            return said, status
        where = f"{self.uri}: {path}: resolving its address"
        raise StorageError(f"{where}: status {status}{reason(said)}")

    def _check_commit(self, path: str, said: Mapping[str, str]) -> None:
        commit = said.get("X-Repo-Commit")
        with self._lock:  # two files may be resolved at once
            self._commit = first = self._commit or commit
        if commit and commit != first:
            raise StorageError(
                f"{self.uri}: {path}: {self.revision} moved from commit {first} to {commit} "
                "while it was read; open it by commit hash"
            )

    def _check_size(self, path: str, said: Mapping[str, str]) -> None:
        size, listed = said.get("X-Linked-Size"), self.files()[path]
        if size is None and "Location" not in said:  # a redirect tells the length of its own body
            size = said.get("Content-Length")
        if size is not None and size != str(listed):
            raise StorageError(f"{self.uri}: {path}: listed with {listed} bytes, has {size}")


def list_refs(
    repo: str, endpoint: str | None = None, token: str | None = None
) -> list[tuple[str, str]]:
    """Branches, then tags, of a repository, each with the commit that it points to.

    With ``HF_HUB_OFFLINE`` set, those of which the cache of huggingface_hub has files.

    Raises
    ------
    RunNotFound
        If the repository is missing, private or gated.
    StorageError
        If the Hub can't be asked.
    """
    if _is_offline():
        return _cached_refs(repo)
    with _explained(repo, None):
        refs = _api(endpoint, token).list_repo_refs(repo)
    return [(ref.name, ref.target_commit) for ref in (*refs.branches, *refs.tags)]


def list_files(
    repo: str,
    commit: str,
    endpoint: str | None = None,
    token: str | None = None,
    *,
    folder: str = "",
) -> dict[str, int]:
    """Path and size in bytes of every file of one commit (or branch, or tag), or below a folder.

    Paths are relative to the folder.

    Raises
    ------
    RunNotFound
        If the repository or the revision is missing, private or gated.
    StorageError
        If the Hub can't be asked.
    """
    return list_content(repo, commit, endpoint, token, folder=folder)[0]


def list_content(
    repo: str,
    commit: str,
    endpoint: str | None = None,
    token: str | None = None,
    *,
    folder: str = "",
) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes as `list_files` gives them, and hashes of the contents, from the same listing.

    With ``HF_HUB_OFFLINE`` set, those of the files that the cache of huggingface_hub has.

    Returns
    -------
    (dict of str to int, dict of str to str)
        Hashes are ``"sha256:…"`` for files in large-file storage, and ``"git:…"``, the hash of the
        blob, for small ones. Those of one kind can be compared.

    Raises
    ------
    RunNotFound, StorageError
        As `list_files`.
    """
    from huggingface_hub.hf_api import RepoFile

    if _is_offline():
        return _cached_content(repo, commit, folder)
    with _explained(repo, commit):
        tree = _api(endpoint, token).list_repo_tree(
            repo, folder or None, recursive=True, revision=commit
        )
        found = [entry for entry in tree if isinstance(entry, RepoFile)]
    below = f"{folder}/" if folder else ""
    sizes = {entry.path.removeprefix(below): entry.size for entry in found}
    hashes = {
        entry.path.removeprefix(below): (
            f"sha256:{entry.lfs.sha256}" if entry.lfs is not None else f"git:{entry.blob_id}"
        )
        for entry in found
    }
    return sizes, hashes


def _cached_snapshot(repo: str, commit: str, path: str, size: int) -> Path | None:
    """Folder of one commit in the cache of huggingface_hub, if this file is there and whole."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, path, revision=commit)
        if not isinstance(found, str) or os.stat(found).st_size != size:
            return None
    except (HFValidationError, ValueError, OSError):
        return None
    folder = Path(found).parents[path.count("/")]
    # a ref that is named like the commit but points elsewhere would have led there
    return folder if folder.name == commit and folder.parent.name == "snapshots" else None


def _offline_commit(repo: str, revision: str) -> str | None:
    """Commit that the cache knows a branch or tag as, where nobody else may be asked."""
    if not _is_offline():
        return None  # the branch may have moved since
    try:
        commit = (_cache_of(repo) / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _cached_refs(repo: str) -> list[tuple[str, str]]:
    """Branches and tags of which the cache has files; it does not tell which are which."""
    cache = _cache_of(repo)
    names = [p.relative_to(cache / "refs").as_posix() for p in sorted((cache / "refs").rglob("*"))]
    known = [(name, commit) for name in names if (commit := _offline_commit(repo, name))]
    found = [(name, commit) for name, commit in known if (cache / "snapshots" / commit).is_dir()]
    if not found:
        raise StorageError(
            f"hf://{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked, and {cache} holds no "
            "branch or tag of it; unset it, or fetch them beforehand with `hf download --revision`"
        )
    return found


def _cached_content(repo: str, revision: str, folder: str) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes of the files that the cache has, and hashes, which are the names of its blobs."""
    commit = revision if _COMMIT.fullmatch(revision) else _offline_commit(repo, revision)
    top = _cache_of(repo) / "snapshots" / (commit or revision)
    if not top.is_dir():
        raise StorageError(
            f"hf://{repo}@{revision}: HF_HUB_OFFLINE is set, so the Hub is not asked, and {top} is "
            "not there; unset it, or fetch it beforehand with `hf download --revision`"
        )
    kinds = {64: "sha256", 40: "git"}  # by the length of the hash
    sizes, hashes = {}, {}
    for file in sorted((top / folder).rglob("*")):
        if file.is_file():
            path = file.relative_to(top / folder).as_posix()
            sizes[path] = file.stat().st_size
            blob = file.resolve().name if file.is_symlink() else ""
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob):
                hashes[path] = f"{kinds[len(blob)]}:{blob}"
    return sizes, hashes


def _cache_of(repo: str) -> Path:
    """Folder of a repository in the cache of huggingface_hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint(given: str | None) -> str:
    from huggingface_hub import constants

    # huggingface_hub reads the variable once, when it is imported; a notebook may set it later
    return (given or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _token(given: str | None) -> str | None:
    from huggingface_hub import get_token

    return given or get_token()


def _api(endpoint: str | None, token: str | None):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(endpoint), token=token, library_name="analysis360")


def _refuse_offline(what: str) -> None:
    if _is_offline():
        raise StorageError(f"{what}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it")


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Say in one sentence what an error of huggingface_hub means for the run."""
    from huggingface_hub import errors

    where = f"hf://{repo}" + (f"@{revision}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise RunNotFound(
            f"{where}: gated: ask for access at its page on the Hub, then log in with `hf auth "
            "login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RunNotFound(
            f"{where}: no such repository, or a private one that this token may not read (the Hub "
            "doesn't tell which); check the name, log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RunNotFound(f"{where}: the repository has no such branch, tag or commit") from error
    except errors.HFValidationError as error:
        raise RunNotFound(f"{where}: not a repository name; it reads owner/name") from error
    except errors.OfflineModeIsEnabled as error:
        raise StorageError(f"{where}: HF_HUB_OFFLINE is set, so the Hub is not asked") from error
    except errors.HfHubHTTPError as error:
        busy = error.response is None or error.response.status_code in BUSY
        kind = StorageError if busy else RunNotFound
        raise kind(f"{where}: the Hub refused: {error}") from error
    except Exception as error:
        if not _is_network(error):
            raise
        raise StorageError(f"{where}: the Hub can't be reached: {error}") from error


def _is_network(error: Exception) -> bool:
    """Whether an HTTP client raised this; which one depends on the version of huggingface_hub."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in ("httpx", "httpx2", "httpcore", "requests")
