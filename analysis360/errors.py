"""Every error that analysis360 raises on purpose.

Each class is also the builtin that a caller would catch, so ``except LookupError`` and
``except OSError`` keep working. A message says what happened, where (checkpoint, file, key, byte
range) and what would be allowed.
"""

from __future__ import annotations

__all__ = [
    "Analysis360Error",
    "CheckpointNotFound",
    "FormatError",
    "LogError",
    "MemoryBudgetError",
    "RunNotFound",
    "StatisticError",
    "StorageError",
    "TableError",
]


_LONGEST = 2000


class Analysis360Error(Exception):
    """Base of all errors of this package."""

    def __str__(
        self,
    ) -> str:  # KeyError and LookupError quote their message; a sentence should not be quoted
        text = str(self.args[0]) if self.args else type(self).__name__
        # A name in a damaged file may be anything, and of any length
        return text if len(text) <= _LONGEST else f"{text[:1500]} […] {text[-400:]}"


class RunNotFound(Analysis360Error, LookupError):
    """No run of that name, repository or folder, or no access to it."""


class CheckpointNotFound(Analysis360Error, LookupError):
    """The run has no checkpoint that matches the selection."""


class FormatError(Analysis360Error, ValueError):
    """A checkpoint file says something that cannot be true, or is cut short."""


class LogError(Analysis360Error, ValueError):
    """A training log or a benchmark result cannot be read as such."""


class StorageError(Analysis360Error, OSError):
    """Bytes could not be had: the network, a server or a disk refused them."""


class StatisticError(Analysis360Error, ValueError):
    """A statistic, accumulator or state is unknown, misspelt or asked of the wrong thing."""


class MemoryBudgetError(Analysis360Error, ValueError):
    """The memory given is smaller than the least that the plan needs."""


class TableError(Analysis360Error, ValueError):
    """A measured table lacks columns, mixes runs, or its files are damaged."""
