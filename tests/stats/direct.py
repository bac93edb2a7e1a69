"""Statistics of arrays in memory, by the package's own functions, without files or an engine."""

import numpy as np
import torch

from analysis360.stats import SCALARS, gather, statistics
from tests.cases import termed


def direct(names, **given):
    """Statistics by name, of tensors and scalars given by the names that functions have for them."""
    arrays = {k: v.double() for k, v in given.items() if isinstance(v, torch.Tensor)}
    scalars = {k: v for k, v in given.items() if k not in arrays}
    known = {k: np.float64(scalars.get(k, np.nan)) for k in SCALARS}
    for measure in dict.fromkeys(m for name in names for m in statistics[name].measures):
        if measure.axis is None:
            inputs = {k: v.reshape(-1) for k, v in arrays.items() if k in measure.inputs}
        else:
            inputs = {k: v for k, v in arrays.items() if k in measure.inputs}
        inputs |= {k: known[k] for k in measure.inputs if k in known}
        found = measure.function(**inputs).numpy()
        known |= dict(zip(measure.fields, found))
    with np.errstate(all="ignore"):
        known |= termed(known)
        return {n: float(statistics[n].function(**_inputs(n, known))) for n in names}


def _inputs(name, known):
    return {i: gather(known, i) for i in statistics[name].inputs}
