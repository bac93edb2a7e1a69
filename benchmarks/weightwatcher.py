"""Spectral statistics beside WeightWatcher's, of one and the same small checkpoint.

``python -m benchmarks.weightwatcher --python OTHER`` makes a Llama-like state dict in float32 with
heavy-tailed spectra, and takes turns with two processes: this one's python with analysis360, and
`OTHER` with weightwatcher (``python -m venv``, ``pip install weightwatcher torch``). Both are held
to the same cores and to as many threads, take the tensors from memory, and find norm, spectral norm
and stable rank. WeightWatcher always fits a power law as well; for this comparison the fit is taken
out of it (its options offer no way), and what is left is its SVD. The whole of it, with α, against
the same with α of ours, is timed apart. Errors are against numpy's SVD in float64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Child, Peer, compare, in_turns, machine, progress

KEPT: dict[str, Any] = {}
THREE = ("l2_norm", "spectral_norm", "stable_rank")
Numbers = dict[str, dict[str, float]]


# What the children do


def load(path: str, cores: list[int]) -> dict[str, Any]:
    """Take the checkpoint to memory, and keep to these cores."""
    os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(len(cores))
    arrays = np.load(path)
    KEPT["state"] = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    KEPT["nbytes"] = sum(array.nbytes for array in KEPT["state"].values())
    return {"nbytes": KEPT["nbytes"]}


def by_analysis360(alpha: bool) -> dict[str, Any]:
    import analysis360 as a360

    names = [*THREE, "power_law_alpha", "power_law_alpha_se"] if alpha else list(THREE)
    table = a360.measure(KEPT["state"], statistics=names)
    said = table.set_index("name")[names].to_dict("index")
    return {"nbytes": KEPT["nbytes"], "found": said}


def by_weightwatcher(alpha: bool) -> dict[str, Any]:
    import weightwatcher  # type: ignore[import-not-found, unused-ignore]

    watcher = weightwatcher.WeightWatcher(model=KEPT["state"], log_level="ERROR")
    if not alpha:  # in the order of what it returns: no fit, and nothing that needs one
        watcher.fit_powerlaw = lambda *_, **__: (-1, -1, -1, -1, -1, -1, -1, 0, -1, "", "")
    details = watcher.analyze(plot=False, randomize=False, vectors=False, mp_fit=False, detX=False)
    found = {}
    for row in details.to_dict("records"):
        name = next(n for n in KEPT["state"] if n.removesuffix(".weight") == row["name"])
        found[name] = {
            "l2_norm": row["norm"] ** 0.5, "spectral_norm": row["spectral_norm"] ** 0.5,
            "stable_rank": row["stable_rank"], "power_law_alpha": row["alpha"],
            "power_law_alpha_se": row["sigma"],
        }  # fmt: skip
    return {"nbytes": KEPT["nbytes"], "found": found}


# What the parent does


def checkpoint(layers: int, hidden: int) -> dict[str, np.ndarray]:
    """Matrices of Llama layers with Pareto eigenvalues, exponents between 2 and 4, RMS 0.02."""
    ffn, keys = 11 * hidden // 4, hidden // 4
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    rng, made = np.random.default_rng(360), {}
    for layer in range(layers):
        for part, (rows, columns) in shapes.items():
            side = min(rows, columns)
            left = np.linalg.qr(rng.standard_normal((rows, side)))[0]
            right = np.linalg.qr(rng.standard_normal((columns, side)))[0]
            values = np.sqrt(1 + rng.pareto(rng.uniform(1, 3), side))
            matrix = (left * values) @ right.T
            matrix *= 0.02 / np.sqrt((matrix**2).mean())
            made[f"model.layers.{layer}.{part}.weight"] = matrix.astype(np.float32)
    return made


def truth(made: dict[str, np.ndarray]) -> Numbers:
    found = {}
    for name, matrix in made.items():
        sigmas = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        norm = float(np.sqrt((sigmas**2).sum()))
        found[name] = {
            "l2_norm": norm, "spectral_norm": float(sigmas[0]),
            "stable_rank": float((norm / sigmas[0]) ** 2),
        }  # fmt: skip
    return found


def worst(found: Numbers, want: Numbers, name: str) -> float:
    """Largest relative error of a statistic over the tensors."""
    if found.keys() != want.keys():
        raise RuntimeError(f"tensors left out: {sorted(want.keys() - found.keys())}")
    return max(abs(found[t][name] / want[t][name] - 1) for t in want)


def report(title: str, peers: list[Peer]) -> None:
    print(f"\n**{title}**, {len(peers[0].warm)} rounds\n\n{compare(peers)}\n")
    ours, theirs = ([d.seconds for d in p.warm] for p in peers)
    ratios = [b / a for a, b in zip(ours, theirs)]
    print(
        f"Seconds: {statistics.median(ours):.2f} and {statistics.median(theirs):.2f}; analysis360 is "
        f"{statistics.median(ratios):.1f} times as fast (rounds: {min(ratios):.1f}–{max(ratios):.1f})"
    )


def main() -> None:
    given = arguments()
    print(f"{machine()}\n")
    made = checkpoint(given.layers, given.hidden)
    shapes = sorted({array.shape for array in made.values()})
    print(f"{len(made)} float32 matrices, {given.threads} threads; shapes: {shapes}")
    want = truth(made)
    progress("the truth is there")
    threads = {
        name: str(given.threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    cores = sorted(os.sched_getaffinity(0))[: given.threads]
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint.npz"
        np.savez(path, **made)  # type: ignore[arg-type, unused-ignore]
        mine = stack.enter_context(Child("benchmarks.weightwatcher", threads))
        other = stack.enter_context(Child("benchmarks.weightwatcher", threads, given.python))
        for child in (mine, other):
            child.call("load", path=str(path), cores=cores)
        for alpha in (False, True):
            title = "with power-law α" if alpha else "norm, spectral norm, stable rank"
            theirs = "WeightWatcher" if alpha else "WeightWatcher, fit taken out"
            peers = [
                Peer("analysis360", mine, "by_analysis360", {"alpha": alpha}),
                Peer(theirs, other, "by_weightwatcher", {"alpha": alpha}),
            ]
            in_turns(peers, given.rounds)
            report(title, peers)
            ours, others = (p.rounds[-1].said["found"] for p in peers)
            for name in THREE:
                errors = [worst(found, want, name) for found in (ours, others)]
                print(f"{name}: worst relative error {errors[0]:.0e}, WeightWatcher's {errors[1]:.0e}")
        apart = [abs(ours[t]["power_law_alpha"] - others[t]["power_law_alpha"]) for t in made]
        errors = [a / others[t]["power_law_alpha_se"] for a, t in zip(apart, made)]
        print(f"α: apart by {max(apart):.0e} at most, {max(errors):.0e} of WeightWatcher's sigma")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", required=True, help="of an environment with weightwatcher")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="besides one to warm up")
    return parser.parse_args()


if __name__ == "__main__":
    main()
