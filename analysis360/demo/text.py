"""Text that every Python installation has: the sources of its standard library."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import os
import sysconfig
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analysis360.demo.config import DemoConfig

__all__ = ["END", "ODD", "VOCAB", "Corpus", "batch_windows", "load_corpus", "read_sources"]

#: Token between two files.
END = 256

#: Number of tokens: the 256 bytes and `END`.
VOCAB = 257

Tokens = npt.NDArray[np.uint16]
Batches = npt.NDArray[np.int64]

# Not ordinary library code, or different from one build of the same Python to another.
_SKIP = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def read_sources() -> dict[str, bytes]:
    r"""Read the ordinary sources of the standard library.

    Returns
    -------
    dict of str to bytes
        Path relative to the standard library, in sorted order, and content with ``\n`` ends.
    """
    root = _stdlib()
    found = {}
    for folder, inner, files in os.walk(root):
        inner[:] = set(inner) - _SKIP
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and not file.startswith("_sysconfigdata"):
                found[path.relative_to(root).as_posix()] = path
    return {name: _read(found[name]) for name in sorted(found)}


def _read(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


def held_out(name: str) -> bool:
    """Whether a file is held out: one in six, by the CRC of its relative path."""
    return zlib.crc32(name.encode()) % 6 == 0


def _join(sources: dict[str, bytes]) -> bytes:
    return b"".join(sources.values())


def _packed(sources: dict[str, bytes]) -> bytes:
    return zlib.compress(_join(sources), 9)


def _tables(sources: dict[str, bytes]) -> bytes:
    texts = [_read(path) for path in sorted((_stdlib() / "encodings").glob("*.py"))]
    return b"".join(text for text in texts if b"decoding_table" in text or b"decoding_map" in text)


def _combining(sources: dict[str, bytes]) -> bytes:
    return ",".join(str(unicodedata.combining(chr(point))) for point in range(0x110000)).encode()


def _points(sources: dict[str, bytes]) -> bytes:
    lines = []
    for point in range(0x10000):
        sign = chr(point)
        lines.append(
            f"{point:04X};{unicodedata.category(sign)};{unicodedata.combining(sign)};"
            f"{unicodedata.bidirectional(sign)};{unicodedata.decomposition(sign)};;;;N;;;;;\n"
        )
    return "".join(lines).encode()


def _uu(sources: dict[str, bytes]) -> bytes:
    text = _packed(sources)
    lines = (binascii.b2a_uu(text[start : start + 45]) for start in range(0, len(text), 45))
    return b"".join(lines)


_ROT13 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm",
)

#: Texts for the odd chunk, made from the training sources or from files that are never
#: ordinary text. `DEMO` uses ``base64``; the others were tried (see ``docs/demo.md``).
ODD: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    # The sources in base64, on one line.
    "base64": lambda sources: base64.b64encode(_join(sources)),
    # The compressed sources as they are, in base64, in base85, and uuencoded.
    "binary": _packed,
    "base64-zlib": lambda sources: base64.b64encode(_packed(sources)),
    "base85-zlib": lambda sources: base64.b85encode(_packed(sources)),
    "uu-zlib": _uu,
    # The sources without white space, backwards, in ROT13 and in UTF-16.
    "minified": lambda sources: b"".join(_join(sources).split()),
    "reversed": lambda sources: _join(sources)[::-1],
    "rot13": lambda sources: _join(sources).translate(_ROT13),
    "utf16": lambda sources: _join(sources).decode("utf-8", "replace").encode("utf-16-le"),
    # The character tables of `encodings`, and two made from `unicodedata`.
    "tables": _tables,
    "combining": _combining,
    "points": _points,
}


@dataclass(frozen=True)
class Corpus:
    """Token arrays of a run.

    Attributes
    ----------
    ordinary : ndarray of uint16
        Training text, files separated by `END`.
    odd : ndarray of uint16
        Text of the odd chunk.
    held : dict of str to bytes
        Held-out files, never trained on.
    fingerprint : str
        SHA-256 of all three.
    """

    ordinary: Tokens
    odd: Tokens
    held: dict[str, bytes]
    fingerprint: str


def load_corpus(config: DemoConfig, *, chunks: int | None = None) -> Corpus:
    """Read the texts a configuration needs.

    Parameters
    ----------
    config : DemoConfig
        Names the odd text and says how much is needed.
    chunks : int, optional
        Highest number of a chunk; one more than `config.total_chunks` by default.

    Returns
    -------
    Corpus
        The texts.

    Raises
    ------
    RuntimeError
        If this Python comes with too little source text.
    """
    sources = read_sources()
    train = {name: text for name, text in sources.items() if not held_out(name)}
    held = {name: text for name, text in sources.items() if held_out(name)}
    parts: list[Tokens] = []
    for text in train.values():
        parts.append(np.frombuffer(text, np.uint8).astype(np.uint16))
        parts.append(np.array([END], np.uint16))
    ordinary = np.concatenate(parts) if parts else np.empty(0, np.uint16)
    odd = np.frombuffer(ODD[config.odd](train), np.uint8).astype(np.uint16)
    windows = config.batch * config.chunk_steps
    need = windows * (chunks or config.total_chunks + 1) * config.context
    if len(ordinary) < need or len(odd) < windows * config.context:
        raise RuntimeError(
            f"the demo trains on the standard library's sources, but {_stdlib()} holds only "
            f"{len(ordinary):,} bytes of ordinary text ({need:,} needed) and {len(odd):,} for "
            "the odd chunk; use a Python that comes with its sources"
        )
    digest = hashlib.sha256(ordinary.tobytes() + odd.tobytes())
    for name, text in held.items():
        digest.update(name.encode() + b"\0" + text)
    return Corpus(ordinary, odd, held, digest.hexdigest())


def batch_windows(corpus: Corpus, config: DemoConfig, seed: int, chunk: int) -> Batches:
    """Cut one chunk into batches; a function of its arguments alone.

    Parameters
    ----------
    corpus : Corpus
        The texts.
    config : DemoConfig
        The configuration.
    seed : int
        Seed of the order.
    chunk : int
        Number of the chunk, from 1.

    Returns
    -------
    ndarray of int64, shape (chunk_steps, batch, context + 1)
        The batches; the last token of a window is the first of its neighbour in the text.
    """
    length, per_chunk = config.context, config.batch * config.chunk_steps
    if chunk == config.odd_chunk:
        text, first = corpus.odd, 0
    else:
        text, first = corpus.ordinary, (chunk - 1 - (chunk > config.odd_chunk)) * per_chunk
    number = (len(text) - 1) // length
    order = np.random.default_rng([seed, int(chunk == config.odd_chunk)]).permutation(number)
    starts = order[first : first + per_chunk, None] * length
    windows: Batches = text[starts + np.arange(length + 1)].astype(np.int64)
    return windows.reshape(config.chunk_steps, config.batch, length + 1)


def docstrings(text: bytes) -> list[bytes]:
    """Return the docstrings of a module, its classes and functions, as they are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [doc.encode() for doc in found if doc]
