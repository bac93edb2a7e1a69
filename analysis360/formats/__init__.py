"""How tensors lie in bytes: which files a checkpoint has, and where in them each tensor is."""

from __future__ import annotations

from analysis360.formats import safetensors as _safetensors  # noqa: F401 - registers itself
from analysis360.formats import torch_save as _torch_save  # noqa: F401 - registers itself, second

# isort: split
from analysis360.formats import dcp as _dcp  # noqa: F401 - third: whole files are simpler
from analysis360.formats.base import Format, HeaderReader, Index, formats, index_checkpoint

__all__ = ["Format", "HeaderReader", "Index", "formats", "index_checkpoint"]
