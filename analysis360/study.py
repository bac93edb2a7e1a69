"""Whole paths from a run to a report: what the command line does, in a few calls."""

from __future__ import annotations

import os
from pathlib import Path

from analysis360 import (
    EVIDENCE_STATISTICS,
    find_spikes,
    join_benchmarks,
    load_table,
    open_run,
    plan,
    read_benchmarks,
    read_loss,
    write_report,
)
from analysis360.core import Run
from analysis360.stats import DEFAULT

__all__ = ["report_on", "run_demo"]

SPECTRA = ("spectral_norm", "spectral_norm_error", "stable_rank")


def report_on(
    path: str | os.PathLike[str], results: str | os.PathLike[str], run: str | None = None
) -> Path:
    """Write the report of a results folder, with the run's loss and benchmarks where it has them.

    Parameters
    ----------
    path : path
        HTML file to write.
    results : path
        Folder that ``plan.run`` wrote.
    run : str, optional
        Run to take the loss and the benchmarks from.

    Returns
    -------
    Path
    """
    if run is None:
        return write_report(path, results)
    return _report(Path(path), Path(results), open_run(run))


def _report(path: Path, results: Path, run: Run) -> Path:
    loss = read_loss(run) if "loss" in run.sources else None
    heldout = read_loss(run, which="heldout") if "heldout" in run.sources else None
    benchmarks = None
    if "benchmarks" in run.sources:
        benchmarks = join_benchmarks(load_table(results, by="all"), read_benchmarks(run))
    return write_report(path, results, loss=loss, heldout=heldout, benchmarks=benchmarks, run=run)


def run_demo(
    folder: str | os.PathLike[str] = "analysis360-demo",
    *,
    seed: int = 0,
    tiny: bool = False,
    progress: bool = True,
) -> str:
    """Train the demo run, measure every checkpoint, and write its report.

    Each stage goes on where it was stopped.

    Parameters
    ----------
    folder : path
        Holds the run afterwards, with ``measured/`` and ``report.html``.
    seed : int
        Of the training.
    tiny : bool
        Train for seconds only; such a run need not spike.
    progress : bool
        Show progress bars.

    Returns
    -------
    str
        What was found, in a few lines.
    """
    from analysis360.demo import DEMO, TINY, demo_outcome, train_demo

    folder = train_demo(folder, TINY if tiny else DEMO, seed=seed, progress=progress)
    run = open_run(folder)
    wanted = dict.fromkeys((*DEFAULT, *SPECTRA, *EVIDENCE_STATISTICS))
    made = plan(run, tuple(wanted), against=("previous", "partner", "ancestor"))
    made.run(folder / "measured", progress=progress)
    report = _report(folder / "report.html", folder / "measured", run)
    outcome = demo_outcome(folder)["summary"]
    return f"{outcome}\n{_found(run)}\nreport: {report}\ntable:  {folder / 'measured'}"


def _found(run: Run) -> str:
    """One line a branch: what the detector says of the training loss."""
    spikes = find_spikes(read_loss(run))
    lasting = spikes[spikes["channel"] == "sustained"]
    if lasting.empty:
        return "no spike was found in the training loss"
    lines = []
    for _, s in lasting.iterrows():
        end = "still up at the end of the log" if s["censored"] else f"over by step {s['end']}"
        lines.append(
            f"loss spike on branch {s['branch']}: from step {s['onset']}, {s['height']:+.2f} nats "
            f"at step {s['peak']}, {end}"
        )
    return "\n".join(lines)
