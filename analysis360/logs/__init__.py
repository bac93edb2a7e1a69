"""Training logs of many makes, read into one frame: the LOSS frame.

`read_loss` (`read.py`) reads a log. Which makes are understood stands in one table,
`analysis360.logs.files.formats`, one module a make; what a column is called in
`analysis360.logs.columns`; what becomes of a run that was restarted in
`analysis360.logs.restarts`; how tokens and samples are filled in `analysis360.logs.units`.
"""

from analysis360.logs.columns import SYNONYMS
from analysis360.logs.files import formats, parse_log
from analysis360.logs.read import read_loss
from analysis360.logs.restarts import list_restarts

__all__ = ["SYNONYMS", "formats", "list_restarts", "parse_log", "read_loss"]
