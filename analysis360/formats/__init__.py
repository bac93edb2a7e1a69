"""How tensors lie in bytes: which files a checkpoint has, and where in them each tensor is."""

from __future__ import annotations

from analysis360.formats import safetensors as _safetensors  # noqa: F401 - registers itself
from analysis360.formats import torch_save as _torch_save  # noqa: F401 - registers itself, second
from analysis360.formats.base import (
    Format,
    HeaderReader,
    Heads,
    Index,
    formats,
    index_checkpoint,
)

# isort: split
# Trainers' own layouts come last: where plain files hold the same tensors, those are read
from analysis360.formats import dcp as _dcp  # noqa: F401 - registers itself
from analysis360.formats import deepspeed as _deepspeed  # noqa: F401 - registers itself
from analysis360.formats import deepspeed_universal as _universal  # noqa: F401 - registers itself
from analysis360.formats import megatron as _megatron  # noqa: F401 - registers itself

__all__ = ["Format", "HeaderReader", "Heads", "Index", "formats", "index_checkpoint"]
