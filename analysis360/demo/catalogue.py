"""The ``analysis360.toml`` of a demo run."""

from __future__ import annotations

from collections.abc import Iterable

from analysis360.demo.config import DemoConfig

__all__ = ["catalogue"]


def catalogue(
    config: DemoConfig,
    forks: Iterable[str],
    events: Iterable[tuple[str, int, str]] = (),
    *,
    name: str = "demo",
    title: str,
) -> str:
    """Return the text of the catalogue of a run trained here.

    Parameters
    ----------
    config : DemoConfig
        Hyper-parameters.
    forks : iterable of str
        Branches that start from the last checkpoint of the trunk.
    events : iterable of (branch, step, label)
        What happened to the data, and when.
    name, title : str
        Name and title of the run.

    Returns
    -------
    str
        TOML.
    """
    lines = [
        f'name = "{name}"',
        f'title = "{title}"',
        'family = "llama"',
        "",
        "[checkpoints]",
        'folder = "checkpoints"',
        r"pattern = '(?P<branch>[a-z0-9]+)_(?:ckpt_(?P<number>\d+)|step_(?P<step>\d+))'",
        f"steps_per_number = {config.chunk_steps}",
        f"tokens_per_step = {config.tokens_per_step}",
        "",
        "[adam]",
        f"beta1 = {config.beta1}",
        f"beta2 = {config.beta2}",
        f"eps = {config.eps}",
        f"weight_decay = {config.weight_decay}",
        f"clip = {config.clip}",
        "",
        "[learning_rate]",
        f"peak = {config.peak_lr}",
        f"final = {config.final_lr}",
        f"warmup = {config.warmup}",
        f"total = {config.total_steps}",
    ]
    for branch in forks:
        lines += ["", "[[forks]]", f'branch = "{branch}"', 'parent = "normal"']
        lines += [f"number = {config.trunk_chunks}"]
    lines += ["", "[sources]", 'loss = ["logs/train.csv"]', 'heldout = ["logs/heldout.csv"]']
    lines += ['benchmarks = ["benchmarks"]']
    for branch, step, label in events:
        lines += ["", "[[events]]", f'branch = "{branch}"', f"step = {step}", f'label = "{label}"']
    return "\n".join(lines) + "\n"
