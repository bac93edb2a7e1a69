r"""Attention logits as the weights of a head allow them (S12 of the catalogue).

With inputs :math:`x, y` as RMSNorm leaves them before its gain
:math:`\Gamma=\mathrm{diag}\,\gamma`, :math:`\|x\|=\|y\|=\sqrt d`, the logit of a head is
:math:`x^T\Gamma W_Q^TR\,W_K\Gamma y/\sqrt{d_h}`, with an orthogonal `R` (rotary positions; the
identity at offset 0). `A` and `B` stand for :math:`W_Q\Gamma` and :math:`W_K\Gamma`, `d_h` rows of
length `d`. Of :math:`A^T=Q_AR_A` and :math:`B^T=Q_BR_B` only the triangles are needed, of side
`d_h`, in float64: :math:`A^TB=Q_A(R_AR_B^T)Q_B^T` has the singular values of its core.

Three things are not in the weights of one head, and make these numbers not applicable: a norm of
queries and keys (QK-norm) after the projection, which divides their size away; biases of the
projections, which are left out; and a scale other than :math:`1/\sqrt{d_h}`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis360.stats.base import statistic, whole
from analysis360.stats.tiles import magnitude

if TYPE_CHECKING:
    import torch

__all__ = ["head_logits", "qk_logit_bound", "qk_logit_rms", "qk_product_norm"]


def _workspace(shapes: tuple[tuple[int, ...], ...]) -> int:
    """Bytes above the stored tensors: float32 copies, one in float64 with its QR, and triangles."""
    height, width = (max(shape[axis] for shape in shapes[:2]) for axis in (0, 1))
    copies = sum(4 * math.prod(shape) for shape in shapes)
    side = min(height, width)
    return copies + 4 * 8 * height * width + 8 * 8 * side * height + 64 * 8 * (height + width)


@whole(
    {"qk_bound": "max", "qk_rms": "max", "qk_top": "max"},
    workspace=_workspace,
    of={"query": "attn.q", "key": "attn.k", "gain": "norm.attn"},
    by_head=True,
)
def head_logits(query: torch.Tensor, key: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Bound on a head's logits, their size for isotropic inputs, and the norm of the product."""
    import torch

    head, width = query.shape
    first, second = _triangle(query, gain), _triangle(key, gain)
    core = first @ second.T
    if not bool(torch.isfinite(core).all()):
        return torch.full((3,), math.nan, dtype=torch.float64)
    top, other, both = (torch.linalg.matrix_norm(m, 2) for m in (first, second, core))
    root = math.sqrt(head)
    return torch.stack([width / root * top * other, core.norm() / root, both])


def _triangle(matrix: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The triangle `R` of the QR decomposition of ``diag(gain) @ matrix.T``, NaN if not finite."""
    import torch

    wanted = min(matrix.shape), matrix.shape[0]
    if not all(bool(torch.isfinite(magnitude(x.reshape(-1)))) for x in (matrix, gain)):
        return torch.full(wanted, math.nan, dtype=torch.float64, device=matrix.device)
    scaled = torch.mul(matrix.T.to(torch.float64), gain.to(torch.float64)[:, None])
    triangle: torch.Tensor = torch.linalg.qr(scaled, mode="r").R
    return triangle


_UNDEFINED = (
    "rows other than those of query heads in plan(per_head=True); non-finite values; not "
    "applicable with QK-norm"
)


@statistic(
    degree=2,
    invariant=("sign", "permutation", "orthogonal"),
    low=0,
    code="S12",
    source="derived; singular values of the attention matrices: Zhai et al. 2023 (quoted, not "
    "checked)",
    null="about ×900 above the size of a true logit at K2's initialisation (derived: 3.0e3 "
    "against 3.3)",
    undefined=_UNDEFINED,
    figure="plot_spectra",
)
def qk_logit_bound(qk_bound: float) -> float:
    r"""Bound on the attention logits of a head, :math:`\frac{d}{\sqrt{d_h}}\sigma_1(A)\sigma_1(B)`.

    :math:`A=W_Q\Gamma`, :math:`B=W_K\Gamma` with the gain of the RMSNorm before: no input, position
    or offset gives :math:`|q^Tk|/\sqrt{d_h}` above it, as rotary positions are orthogonal. Of a
    layer: that of its largest head. NaN where a tensor holds non-finite values, and where the model
    is not divided by head; for models with QK-norm it says nothing.

    Notes
    -----
    It is loose, by about 900 at K2's initialisation: watch its growth over checkpoints, not its
    level. The lines at 1e3 (loss degrades) and 1e4 (diverges) of Wortsman et al. (2023) are for
    true logits and never belong beside it. `qk_logit_rms` is what typical logits are like.
    """
    return qk_bound


@statistic(
    degree=2,
    invariant=("sign", "permutation", "orthogonal"),
    low=0,
    code="S12",
    source="derived",
    null="d·RMS(W_Q)·RMS(W_K) for Gaussian weights and gain 1: 3.3 at K2's initialisation (closed "
    "form)",
    undefined=_UNDEFINED,
    figure="plot_spectra",
)
def qk_logit_rms(qk_rms: float) -> float:
    r"""Root mean square of a head's logits for isotropic inputs, :math:`\|A^TB\|_F/\sqrt{d_h}`.

    :math:`A=W_Q\Gamma`, :math:`B=W_K\Gamma`. For independent `x`, `y` with
    :math:`E\,xx^T=E\,yy^T=I` (unit RMS, no preferred direction)
    :math:`E(x^TA^TBy)^2=\mathrm{tr}(A^TBB^TA)=\|A^TB\|_F^2`, at offset 0. Of a layer: that of its
    largest head. NaN as `qk_logit_bound`.

    Notes
    -----
    The norm is of the `d` × `d` matrix :math:`A^TB`, not of the `d_h` × `d_h` matrix
    :math:`AB^T=W_Q\Gamma^2W_K^T`, which is another number: smaller by :math:`\sqrt{d/d_h}` for
    Gaussian weights. Real inputs have preferred directions, and heads turn to them: true logits of
    a trained model are larger.
    """
    return qk_rms


@statistic(
    degree=2,
    invariant=("sign", "permutation", "orthogonal"),
    low=0,
    code="S12",
    source="derived",
    null="(√d + √d_h)²·RMS(W_Q)·RMS(W_K) at most, for Gaussian weights and gain 1 (closed form)",
    undefined=_UNDEFINED,
)
def qk_product_norm(qk_top: float) -> float:
    r"""Largest singular value of a head's bilinear form, :math:`\sigma_1(A^TB)`.

    :math:`A=W_Q\Gamma`, :math:`B=W_K\Gamma`: times :math:`d/\sqrt{d_h}` it is the largest logit at
    offset 0, which `qk_logit_bound` bounds in turn for every offset. Of a layer: that of its
    largest head. NaN as `qk_logit_bound`.
    """
    return qk_top
