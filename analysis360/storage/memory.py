"""A model in memory as a checkpoint: one virtual file per tensor, copied only when it is read."""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from analysis360.core import DTYPE_BYTES, Adam, Part, TensorInfo
from analysis360.errors import FormatError, StorageError
from analysis360.storage.base import Store

if TYPE_CHECKING:
    import torch

__all__ = ["MemoryStore", "adam_of", "are_tied"]

_TIED = re.compile(
    r"(^|\.)(lm_head|embed_out|output|head|wte|embed_tokens|embed_in|tok_embeddings)\."
)
_STATES = ("exp_avg", "exp_avg_sq", "master")
_live: weakref.WeakValueDictionary[str, MemoryStore] = weakref.WeakValueDictionary()
_count = itertools.count(1)
_lock = threading.Lock()


def are_tied(first: str, second: str) -> bool:
    """Whether two names of one storage are an embedding and the head tied to it."""
    return bool(_TIED.search(f".{first}")) and bool(_TIED.search(f".{second}"))


def adam_of(
    groups: Iterable[tuple[Mapping[str, Any], float]], *, complete: bool = False
) -> Adam | None:
    """Hyper-parameters of an optimizer from its parameter groups.

    Parameters
    ----------
    groups : iterable of (mapping, float)
        Each group's settings with a weight: the number of elements in its matrices. The group of
        the largest weight speaks for all, as `Adam.weight_decay` is that of the matrices.
    complete : bool
        Whether these are all groups of the optimizer. If it is one, its decay is that of all
        tensors.

    Returns
    -------
    Adam or None
        None if no group tells ``betas``.
    """
    every = list(groups)
    known = [(group, weight) for group, weight in every if "betas" in group]
    if not known:
        return None
    group = max(known, key=lambda pair: pair[1])[0]
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return None
    values = [_number(v) for v in (*betas, *(group.get(k) for k in ("eps", "weight_decay", "lr")))]
    of_all = 0 if complete and len(every) == 1 and values[3] is not None else None
    return Adam(
        values[0], values[1], values[2], weight_decay=values[3], lr=values[4], decay_from=of_all
    )


def _number(value: object) -> float | None:
    """Take a plain float; a 0-d tensor (``lr`` of capturable optimizers) is asked for its item."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)  # an integer of a file may be too large for a float
    return None


def _place(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Give what two tensors share just if they are the same view of the same memory."""
    if tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class MemoryStore(Store):
    """Tensors in memory, readable as if they were files.

    Nothing is copied until it is read, so a read sees the values of that moment: measure between
    optimizer steps. Tensors on another device are copied row by row.

    Parameters
    ----------
    arrays : mapping of str to torch.Tensor
        Key, which is also the virtual file's name, to tensor.
    tensors : sequence of TensorInfo, optional
        What each key is; by default each is a weight of that name.
    adam : Adam, optional
    step : int, optional
        Optimizer steps taken.
    skipped : sequence of (str, str), optional
        Keys left out, and why.

    Attributes
    ----------
    tensors : tuple of TensorInfo
    adam : Adam or None
    step : int or None
    skipped : tuple of (str, str)
    uri : str
        ``memory://<id>``, under which `open_store` finds this store while it is alive.

    Examples
    --------
    >>> import torch
    >>> store = MemoryStore.from_state_dict({"w": torch.tensor([1.0, 2.0])})
    >>> dict(store.files()), store.tensors[0].dtype
    ({'w': 8}, 'float32')
    """

    def __init__(
        self,
        arrays: Mapping[str, torch.Tensor],
        *,
        tensors: Iterable[TensorInfo] | None = None,
        adam: Adam | None = None,
        step: int | None = None,
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._arrays = {key: tensor.detach() for key, tensor in arrays.items()}
        described = tensors or (_info(key, key, "weight", t) for key, t in self._arrays.items())
        self.tensors = tuple(described)
        self.adam, self.step, self.skipped = adam, step, tuple(skipped)
        self._files = {k: t.numel() * t.element_size() for k, t in self._arrays.items()}
        with _lock:
            self.id = f"{next(_count)}"
            _live[self.id] = self
        self.uri = f"memory://{self.id}"

    @classmethod
    def find(cls, name: str) -> MemoryStore:
        """Look up the live store of this id.

        Raises
        ------
        StorageError
            If there is none, or it has been let go.
        """
        with _lock:
            found = _live.get(name)
        if found is None:
            raise StorageError(f"memory://{name}: no such model in memory; it may have been let go")
        return found

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> MemoryStore:
        """Take a model's weights, and an optimizer's moments, as they are in memory.

        Parameters
        ----------
        state_dict : mapping of str to torch.Tensor
            As from ``model.state_dict()`` or ``dict(model.named_parameters())``.
        optimizer : torch.optim.Optimizer, optional
            Its parameters are matched to names by the memory they lie in.

        Returns
        -------
        MemoryStore

        Raises
        ------
        FormatError
            If `state_dict` holds no tensor.
        """
        import torch

        arrays: dict[str, torch.Tensor] = {}
        infos: list[TensorInfo] = []
        skipped: list[tuple[str, str]] = []
        names: dict[object, str] = {}
        for name, value in state_dict.items():
            why = _unreadable(value)
            place = None if why else _place(value)
            if place is not None and place in names and are_tied(names[place], name):
                why = f"shares storage with {names[place]}"
            if why:
                skipped.append((name, why))
                continue
            if place is not None:
                names.setdefault(place, name)
            arrays[name] = value
            infos.append(_info(name, name, "weight", value))
        if not arrays:
            raise FormatError("state_dict: no dense tensor in it, so there is nothing to measure")
        if optimizer is None:
            return cls(arrays, tensors=infos, skipped=skipped)
        steps: list[int] = []
        for name, state in _moments(optimizer, names, skipped):
            for kind in _STATES:
                if kind in state and not _unreadable(state[kind]):
                    key = f"{name}.{kind}"
                    arrays[key] = state[kind]
                    infos.append(_info(name, key, kind, state[kind]))
            step = _number(state.get("step"))
            if step is not None:
                steps.append(int(step))
                key = f"{name}.step"
                arrays[key] = torch.tensor(int(step))
                infos.append(_info(name, key, "step", arrays[key]))
        weighed = ((g, _matrix_elements(g["params"])) for g in optimizer.param_groups)
        adam = adam_of(weighed, complete=True)
        return cls(arrays, tensors=infos, adam=adam, step=max(steps, default=None), skipped=skipped)

    def files(self) -> Mapping[str, int]:  # noqa: D102 - inherited
        return self._files

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:  # noqa: D102
        self.check_range(path, offset, len(buffer))
        if len(buffer):
            buffer[:] = _raw(self._arrays[path], offset, len(buffer))


def _matrix_elements(params: Iterable[torch.Tensor]) -> float:
    return float(sum(p.numel() for p in params if p.ndim >= 2))


def _moments(
    optimizer: torch.optim.Optimizer, names: Mapping[object, str], skipped: list[tuple[str, str]]
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Optimizer state of each parameter, under the name that the state_dict gives its memory."""
    for g, group in enumerate(optimizer.param_groups):
        for p, param in enumerate(group["params"]):
            state = optimizer.state.get(param)
            if not state:
                continue  # no gradient yet
            name = names.get(_place(param))
            if name is None:
                skipped.append((f"optimizer group {g} parameter {p}", "not in the state_dict"))
            else:
                yield name, state


def _unreadable(value: object) -> str:
    """Why a value of a state_dict cannot be measured; empty if it can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"not a tensor but {type(value).__name__}"
    if value.is_meta:
        return "on the meta device, without values"
    if value.layout != torch.strided or value.is_quantized:
        return f"not a dense tensor ({value.layout})"
    if type(value).__name__ == "DTensor":
        return "a DTensor: gather it first, or measure the saved checkpoint"
    if _dtype(value) not in DTYPE_BYTES:
        return f"dtype {_dtype(value)} is not read"
    return ""


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _info(name: str, key: str, state: str, tensor: torch.Tensor) -> TensorInfo:
    dtype, shape, numel = _dtype(tensor), tuple(tensor.shape), tensor.numel()
    part = Part(key, 0, numel * DTYPE_BYTES[dtype], dtype, flat=(0, numel))
    return TensorInfo(name, key, state, shape, dtype, (part,) if numel else ())


def _raw(tensor: torch.Tensor, offset: int, nbytes: int) -> memoryview:
    """Bytes of the tensor in C order; of a strided or device tensor only the rows they lie in."""
    import torch

    start = 0
    if tensor.ndim and not (tensor.is_contiguous() and tensor.device.type == "cpu"):
        width = tensor.numel() // tensor.shape[0] * tensor.element_size()
        first, last = offset // width, (offset + nbytes - 1) // width
        tensor, start = tensor[first : last + 1], first * width
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    raw = memoryview(flat.numpy())  # type: ignore[arg-type]
    return raw[offset - start : offset - start + nbytes]
