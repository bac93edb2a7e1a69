"""The folder that a plan writes, and the table that is made of it.

A results folder holds ``parts/*.parquet`` (sums of accumulators, block by block), ``plan.json``
(what the table is to hold) and ``provenance.json``. What is stored is sums, not statistics: a new
statistic over old sums, and every aggregate over layers or modules, needs no byte of the
checkpoints again. Reading it needs no torch.
"""

from analysis360.results.contents import Contents, Entry, Key, measure_key
from analysis360.results.folder import load_table, read_provenance
from analysis360.results.parts import Parts, Spans, write_json
from analysis360.results.table import tabulate

__all__ = [
    "Contents", "Entry", "Key", "Parts", "Spans", "load_table", "measure_key", "read_provenance",
    "tabulate", "write_json",
]  # fmt: skip
