"""Local safetensors: analysis360 beside a loop in torch, and beside reading alone.

``python -m benchmarks.local`` writes two checkpoints of real files (one K2 layer, embedding and
head: 2 × 2.7 GB), which then lie in the page cache, and takes turns: ``pread`` into reused buffers;
``analysis360``; ``safetensors.safe_open`` with one torch call a statistic.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import Child, Peer, compare, environment, in_turns, machine
from benchmarks.k2 import errors, print_rows
from benchmarks.k2_content import Content, Shape

BRANCHES = ["ckpt_159", "ckpt_160"]


def main() -> None:
    given = arguments()
    print(f"{machine()}\n")
    shape = Shape(layers=given.layers)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        folders = [root / "run" / branch for branch in BRANCHES]
        for folder in folders:
            Content().write(folder, shape, folder.name)

        def child(env: dict[str, str]) -> Child:
            return stack.enter_context(Child("benchmarks.peers", env))

        mine = child(environment(given.env))
        mine.call("open_source", source=str(root / "run"))
        plan = mine.call("make_plan", memory=given.memory)
        print(plan.said["text"], "\n")
        files = [str(path) for f in folders for path in sorted(f.glob("*.safetensors"))]
        loop = child({})
        peers = [
            Peer(f"pread and drop, {given.threads} threads", child({}), "read_and_drop",
                 {"files": files, "threads": given.threads}),
            Peer("analysis360", mine, "run_plan", {}),
            Peer("safe_open + loop", loop, "open_and_loop", {"folders": list(map(str, folders))}),
        ]  # fmt: skip
        in_turns(peers, given.rounds)
        print(f"\n**files in the page cache**, {given.rounds} rounds\n\n{compare(peers)}\n")
        mine.call("save_table", path=str(root / "table.pickle"))
        said = plan.said
        ours = errors(
            pd.read_pickle(root / "table.pickle"), shape, said["revisions"], said["references"]
        )
        theirs = naive_errors(loop.call("said_naively").said, shape)
        print("Worst error over all tensors, on the natural scale:\n")
        print_rows([("statistic", "analysis360 | loop"), ("---", "--- | ---")])
        both = ours.join(theirs, rsuffix="_naive")
        taken = both[np.isfinite(both["error_naive"])]
        print_rows((r.Index, f"{r.error:.1e} | {r.error_naive:.1e}") for r in taken.itertuples())


def naive_errors(found: dict[str, dict[str, float]], shape: Shape) -> pd.DataFrame:
    """The loop's, as `errors` gives them; it says nothing of the first checkpoint."""
    before, last = BRANCHES
    rows = pd.DataFrame.from_dict(found, orient="index").rename_axis("name").reset_index()
    rows = rows.assign(revision=last, state="weight")
    table = pd.concat([rows.assign(against=a) for a in ("", "previous")])
    return errors(table, shape, {last: last}, [(last, "previous", before)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="besides one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="that read and drop")
    parser.add_argument("--memory", default="2 GB")
    parser.add_argument("--folder", help="where the files are written, for a while")
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="for analysis360")
    return parser.parse_args()


if __name__ == "__main__":
    main()
