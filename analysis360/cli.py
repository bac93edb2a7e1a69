"""Command line: each command calls one public function of the library.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted (what was
measured is kept).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis360 import __version__
from analysis360.errors import Analysis360Error

if TYPE_CHECKING:
    from analysis360 import Plan

__all__ = ["main"]

EPILOG = """\
examples:
  analysis360 demo                              train and report a small run with a real spike
  analysis360 list                              runs that can be opened by name
  analysis360 list k2-spike-1                   checkpoints of a run
  analysis360 plan k2-spike-1 --number 160:194  what would be read, held and skipped
  analysis360 measure my_run --out measured     read, measure, keep; goes on where it stopped
  analysis360 report measured --run my_run      one HTML file with figures, tables and methods
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit code.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    try:
        given.function(given)
    except Analysis360Error as error:
        print(f"analysis360: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("analysis360: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="analysis360",
        description="Study how language models train, and why their loss spikes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"analysis360 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    demo = commands.add_parser(
        "demo", help="train, measure and report a small run with a real loss spike",
        description="Train a small model through a chunk of data that makes its loss spike, and "
        "again with that chunk postponed; measure every checkpoint; write a report. Takes a few "
        "minutes on two cores, downloads nothing, and goes on where it was stopped.",
    )  # fmt: skip
    demo.add_argument("--out", default="analysis360-demo", help="folder (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    demo.add_argument("--tiny", action="store_true", help="a few seconds; need not spike")
    _quiet(demo)
    demo.set_defaults(function=_demo)

    listing = commands.add_parser(
        "list", help="runs that can be opened by name, or a run's checkpoints"
    )
    listing.add_argument("run", nargs="?", help="name, Hub repository, or folder")
    listing.add_argument("--pattern", help="how checkpoints are named, e.g. 'step_{step}.pt'")
    _organization(listing)
    listing.set_defaults(function=_list)

    planning = commands.add_parser("plan", help="say what would be read, held and skipped")
    _selection(planning)
    planning.add_argument(
        "--probe", action="store_true", help="read for two seconds to estimate the time"
    )
    planning.set_defaults(function=_plan)

    measuring = commands.add_parser(
        "measure", help="read and measure; resumes where it was stopped"
    )
    _selection(measuring)
    measuring.add_argument("--out", required=True, help="results folder")
    measuring.add_argument(
        "--cache-dir", help="keep fetched bytes in this folder, so that they are fetched once"
    )
    measuring.add_argument(
        "--cache-size", default="100 GB",
        help="most that is kept there in all (default: %(default)s)",
    )  # fmt: skip
    _quiet(measuring)
    measuring.set_defaults(function=_measure)

    report = commands.add_parser("report", help="write one HTML file from a results folder")
    report.add_argument("results", help="results folder that `measure` wrote")
    report.add_argument("--run", help="run whose loss and benchmarks go into the report")
    report.add_argument("--out", help="HTML file (default: RESULTS/report.html)")
    report.set_defaults(function=_report)
    return parser


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _organization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--organization", help="owner of a run's repositories, if they were moved, e.g. IFM"
    )


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="name (see `analysis360 list`), Hub repository, or folder")
    parser.add_argument("--pattern", help="how checkpoints are named, e.g. 'step_{step}.pt'")
    _organization(parser)
    parser.add_argument("--branch", action="append", help="keep this branch; may be repeated")
    parser.add_argument("--number", type=_range, help="checkpoint numbers, e.g. 160 or 160:194")
    parser.add_argument("--step", type=_range, help="training steps, e.g. 1000:2000")
    parser.add_argument("--layers", type=_range, help="layers, e.g. 0:7")
    parser.add_argument(
        "--module", action="append", help="keep this module, e.g. attn; may be repeated"
    )
    parser.add_argument(
        "--statistic", action="append", help="may be repeated (default: all of one pass)"
    )
    parser.add_argument(
        "--state", action="append", help="weight, exp_avg, exp_avg_sq, master, update"
    )
    parser.add_argument(
        "--against", action="append", help="previous, partner or ancestor; may be repeated"
    )
    parser.add_argument(
        "--memory", default="4 GB", help="most private memory (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction,
        help="take sums by compiled loops (default: where numba is installed and 2 GB are read)",
    )  # fmt: skip


def _range(text: str) -> int | slice:
    """Read ``160`` or ``160:194``; both ends are included."""
    low, colon, high = text.partition(":")
    try:
        if not colon:
            return int(low)
        return slice(int(low) if low else None, int(high) if high else None)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number or a range such as 160:194"
        ) from None


def _planned(given: argparse.Namespace, probe: bool = False) -> Plan:
    import analysis360 as a360

    run = a360.open_run(given.run, pattern=given.pattern, organization=given.organization)
    run = run.select(
        branch=given.branch, number=given.number, step=given.step, layers=given.layers,
        modules=given.module,
    )  # fmt: skip
    return a360.plan(
        run, given.statistic, states=given.state or ("weight",),
        against=given.against or ("previous",), memory=given.memory, device=given.device,
        compiled=given.compiled, probe=probe,
    )  # fmt: skip


def _plan(given: argparse.Namespace) -> None:
    print(_planned(given, given.probe))


def _measure(given: argparse.Namespace) -> None:
    made = _planned(given)
    print(made)
    table = made.run(
        given.out, progress=not given.quiet, cache_dir=given.cache_dir,
        cache_size=given.cache_size,
    )  # fmt: skip
    print(f"{len(table):,} rows in {given.out}")


def _list(given: argparse.Namespace) -> None:
    import analysis360 as a360

    if given.run is None:
        frame = a360.list_runs()[["name", "states", "source", "title"]].fillna("")
    else:
        run = a360.open_run(given.run, pattern=given.pattern, organization=given.organization)
        frame = run.checkpoints.drop(columns="uri")
        frame["revision"] = frame["revision"].str[:12]
    print(frame.to_string(index=False))


def _report(given: argparse.Namespace) -> None:
    from analysis360.study import report_on

    out = given.out or Path(given.results) / "report.html"
    print(report_on(out, given.results, given.run))


def _demo(given: argparse.Namespace) -> None:
    from analysis360.study import run_demo

    print(run_demo(given.out, seed=given.seed, tiny=given.tiny, progress=not given.quiet))
