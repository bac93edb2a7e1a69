"""End to end over a link: analysis360 beside the client alone, and beside what people use.

``python -m benchmarks.network`` serves a pair of K2-like checkpoints from a process of its own,
once capped at 1.25 GB/s (10 Gbit/s) and once not, and takes turns:

- the same ranges, by the same client with as many threads, fetched into buffers and dropped;
- ``analysis360``: the default statistics, deltas included;
- ``snapshot_download``, then ``safe_open`` and a loop in torch (of a smaller model);
- ``HfFileSystem``, one exact read a tensor, and the same loop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import Child, Peer, compare, environment, in_turns, machine
from benchmarks.k2_server import ServerProcess

REPO, SMALL = "LLM360/K2", "LLM360/K2-small"
BRANCHES = ["ckpt_159", "ckpt_160"]


def main() -> None:
    given = arguments()
    print(f"{machine()}\n")
    branches = ",".join(BRANCHES)
    repos = [f"{REPO}:{given.layers}={branches}", f"{SMALL}:{given.small}={branches}"]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder))
        options = [word for repo in repos for word in ("--repo", repo)]
        server = stack.enter_context(ServerProcess(*options, "--latency", str(given.latency)))
        env = {"HF_ENDPOINT": server.endpoint, "HF_HOME": f"{folder}/hf"}
        ranges = Path(folder) / "ranges.json"

        mine = stack.enter_context(Child("benchmarks.peers", env | environment(given.env)))
        mine.call("open_source", source=REPO)
        said = mine.call("make_plan", memory=given.memory).said
        print(said["text"], "\n")
        server.tell("clear")
        mine.call("run_plan")  # its ranges are what the client alone will fetch
        log = server.tell("report")
        ranges.write_text(json.dumps(log["ranges"]))
        threads = given.threads or log["connections"]

        def child() -> Child:
            return stack.enter_context(Child("benchmarks.peers", env))

        here = {"endpoint": server.endpoint}
        dropped = {"repo": REPO, "ranges": str(ranges), "threads": threads, **here}
        peers = [
            Peer(f"fetch and drop, {threads} threads", child(), "fetch_and_drop", dropped),
            Peer("analysis360", mine, "run_plan", {}),
        ]
        small = {"repo": SMALL, "checkpoints": BRANCHES, **here}
        if given.others:
            peers += [
                Peer("snapshot_download + loop", child(), "download_and_loop",
                     {**small, "folder": folder}),
                Peer("HfFileSystem + loop", child(), "stream_and_loop", small),
            ]  # fmt: skip
        for rate in given.rates:
            server.tell("set", rate=rate)
            for peer in peers:
                peer.rounds.clear()
            in_turns(peers, given.rounds)
            name = f"link of {rate / 1e9:.2f} GB/s" if rate else "loopback without a cap"
            print(f"\n**{name}**, {given.rounds} rounds\n\n{compare(peers)}\n", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="of the model (4: 2 × 7.5 GB)")
    parser.add_argument("--small", type=int, default=1, help="layers of the model for the others")
    parser.add_argument("--rounds", type=int, default=3, help="besides one to warm up")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.25e9, 0.0], help="0: no cap")
    parser.add_argument("--latency", type=float, default=0.0, help="of each request, in seconds")
    parser.add_argument("--memory", default="2 GB")
    parser.add_argument("--threads", type=int, help="of the client alone; default: as the run had")
    parser.add_argument("--folder", help="where downloads go, for a while")
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="for analysis360")
    parser.add_argument("--no-others", dest="others", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main()
