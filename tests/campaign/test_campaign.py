"""Five hundred faults: each run ends in the identical table, or in a clear error and is resumed.

Run with ``pytest -m campaign tests/campaign``. ``ANALYSIS360_FAULTS`` (default 512) says how many
faults there are in all, at least 2 of each kind; ``ANALYSIS360_SEED`` repeats the draws of an
earlier campaign, though not the timing of its threads. Only what was delivered counts: what the
server did to an answer, a process that died, a write that failed.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from urllib.parse import urlsplit

import pandas as pd
import pytest

import analysis360 as a360
from analysis360.errors import Analysis360Error, StorageError, TableError
from analysis360.table import KEY
from tests.campaign import measuring
from tests.campaign.faults import KINDS, Volley, draw, place_of
from tests.campaign.measuring import REPO, Child, parts
from tests.hub_server import HubServer, serve_run
from tests.small_run import small_run

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(sys.platform != "linux", reason="file-size limits of other processes"),
]

_SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(time.time_ns())  # all workers alike
SEED = int(os.environ.get("ANALYSIS360_SEED") or zlib.crc32(_SESSION.encode()))
FAULTS = int(os.environ.get("ANALYSIS360_FAULTS") or 512)
LOCAL = ("kill -9", "SIGINT", "full disk", "two writers", "last part damaged")
SORTS = len(KINDS) + len(LOCAL) + 1  # and the mixed ones
QUOTA = max(2, -(-FAULTS // SORTS))

SAME, RESUMED = "same table", "clear error, same after a rerun"


class Hub(HubServer):
    """Files that do not change need not be listed for every request."""

    @functools.cache  # noqa: B019 - lives as long as the module
    def find(self, repo, rev):
        return super().find(repo, rev)


class World:
    """A run on a Hub, and what measuring it gives, reads and takes when nothing goes wrong."""

    def __init__(self, home, hub):
        self.home, self.hub, self.made = home, hub, 0
        self.folder = small_run(home / "run", shapes=measuring.SHAPES, last=2)
        serve_run(self.folder / "checkpoints", hub.root, REPO)
        self.files = "|".join(
            {re.escape(f) for _, p in hub.refs(REPO).items() for f in hub.listing(p)}
        )
        self.table, asked = self.watch(self.new())
        assert len(self.table) > 30 and self.table["update_rms"].notna().any()
        self.counts = Counter(place_of(r) for r in asked)
        self.table, asked = self.watch(self.new())
        self.whole = served(asked)
        began, out = time.monotonic(), self.new()
        with Child(self, out) as child:
            self.start = time.monotonic() - began
            same(child.outcome()[2], self.table)
        self.usual = time.monotonic() - began - self.start
        self.finished = out  # a results folder to be damaged
        assert len(parts(out)) >= 4

    def new(self):
        """A results folder that is not there yet."""
        self.made += 1
        return self.home / f"m{self.made:04d}"

    def watch(self, out):
        """Measure without faults; the table and the requests it took."""
        mark = len(self.hub.log)
        table = measuring.measure(self.folder, out)
        return table, self.hub.log[mark:]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patch, Hub(home / "hub") as hub:
        for name in ("no_proxy", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setattr(measuring.schedule, "BLOCK", 0)  # so that all is put back in the end
        patch.setattr(measuring.Parts, "FLUSH_VALUES", 1)
        for store in (measuring.HttpRanges, measuring.HubStore):
            patch.setattr(store.__init__, "__kwdefaults__", dict(store.__init__.__kwdefaults__))
        measuring.hurry()
        yield World(home, hub)


@pytest.fixture
def ledger(record_property):
    """Faults delivered, by kind and outcome."""
    seen = Counter()
    yield seen
    said = [[kind, outcome, n] for (kind, outcome), n in seen.items()]
    record_property("campaign", json.dumps({"seed": SEED, "faults": said}))


@contextmanager
def told(what, *shots):
    """Say with any failure how to have it again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"campaign: ANALYSIS360_SEED={SEED}, {what}; {'; '.join(map(str, shots))}")
        raise


def rounds(sort):
    """Random numbers for one run after another."""
    for number in range(20 * QUOTA + 20):
        yield f"{sort} {number}", random.Random(f"{SEED} {sort} {number}")
    raise AssertionError(f"{sort}: the faults were not delivered; ANALYSIS360_SEED={SEED}")


def same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def served(requests):
    return sum(r.sent for r in requests if r.status == 206)


def sound(world, out):
    """What can be read of an unfinished folder is true: no row is wrong, none is doubled."""
    try:
        some = a360.load_table(out)
    except TableError as error:
        assert str(out) in str(error)
        return
    if some.empty:
        return
    assert not some.duplicated(list(KEY)).any()
    keys = pd.MultiIndex.from_frame(world.table[list(KEY)].astype(str))
    at = keys.get_indexer(pd.MultiIndex.from_frame(some[list(KEY)].astype(str)))
    assert (at >= 0).all(), "rows that are not in the table"
    same(some, world.table.loc[at, some.columns].reset_index(drop=True))


def resume(world, chance, out, damaged=0):
    """Nothing goes wrong any more: the identical table, and what was finished is not read again."""
    measuring.hurry()
    world.hub.faults.clear()
    kept = len(parts(out)) - damaged
    sound(world, out)
    table, asked = world.watch(out)
    same(table, world.table)
    if chance.random() < 0.25:
        same(a360.load_table(out), world.table)
    assert a360.read_provenance(out)["finished"], "the folder does not say that it is finished"
    assert not list(out.rglob("*.aside")), "left lying about"
    if kept:
        assert served(asked) < world.whole, "finished parts were read again"


def clear_of_files(world, error, may_say):
    """Whether an error says the repository, the file and what was wrong with it."""
    assert isinstance(error, Analysis360Error), repr(error)
    said = str(error)
    assert f"hf://{REPO}" in said, said
    if "the Hub refused" not in said and "can't be reached" not in said:  # of a listing
        assert re.search(world.files, said), said
        assert re.search(r"bytes \d+…\d+|resolving", said), said
    assert re.search(may_say, said, re.IGNORECASE), said


def clear_of_folder(error, out):
    """Whether an error of writing says where."""
    kind, meant, said = error
    assert meant and kind == "StorageError" and str(out) in said, error


def http_run(world, chance, out, kinds, lasting):
    """One run in this process with a volley of faults; how many of each kind were delivered."""
    shots = [
        draw(chance, kind, world.counts, lasting and i == len(kinds) - 1)
        for i, kind in enumerate(kinds)
    ]
    measuring.hurry(measuring.SHORT if "stall" in kinds else measuring.CALM)
    world.hub.faults[:] = [Volley(shots)]
    mark, error = len(world.hub.log), None
    with told("faults in this process", *shots):
        try:
            same(measuring.measure(world.folder, out), world.table)
        except Analysis360Error as raised:
            error = raised
        asked = world.hub.log[mark:]
        world.hub.faults.clear()
        done = {id(r.fault) for r in asked if r.fault}
        shots = [shot for shot in shots if id(shot.fault) in done]
        waited_as_told(asked)
        if error is not None:
            assert shots, f"an error without a fault: {error!r}"
            said = "|".join(KINDS[s.kind][2] for s in shots)
            clear_of_files(world, error, said)
    return Counter(s.kind for s in shots), error


def waited_as_told(asked):
    """A request that was answered with Retry-After: 1 came again only when that had passed."""
    for i, first in enumerate(asked):
        if first.fault is None or first.fault.headers.get("Retry-After") != "1":
            continue
        wanted = (first.method, first.host, urlsplit(first.path).path, first.asked)
        for later in asked[i + 1 :]:
            if (later.method, later.host, urlsplit(later.path).path, later.asked) == wanted:
                assert later.at - first.at > 0.95, f"{later.path}: asked again too early"
                break


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_server(world, ledger, kind):
    for what, chance in rounds(kind):
        with told(what):
            out = world.new()
            kinds = [kind] * chance.choice([1, 1, 2, 3, 4])
            seen, error = http_run(world, chance, out, kinds, chance.random() < 0.4)
            if error is not None:
                resume(world, chance, out)
            shutil.rmtree(out, ignore_errors=True)
        ledger.update({(kind, RESUMED if error else SAME): seen.total()})
        if ledger.total() >= QUOTA:
            return


def test_mixed_of_the_server(world, ledger):
    """Several kinds in one run, up to more than a read has patience for."""
    for what, chance in rounds("mixed"):
        with told(what):
            out = world.new()
            kinds = chance.choices(list(KINDS), k=chance.randint(2, 6))
            seen, error = http_run(world, chance, out, kinds, chance.random() < 0.2)
            if error is not None:
                resume(world, chance, out)
            shutil.rmtree(out, ignore_errors=True)
        ledger.update({(f"mixed: {k}", RESUMED if error else SAME): n for k, n in seen.items()})
        if ledger.total() >= QUOTA:
            return


def kill(world, chance, out):
    with Child(world, out) as child:
        child.wait_for(chance, world.usual)
        child.signal(signal.SIGKILL)
        said = child.outcome()
        if said is not None:
            same(said[2], world.table)
        return said is None


def interrupt(world, chance, out):
    with Child(world, out) as child:
        child.wait_for(chance, world.usual)
        child.signal(signal.SIGINT)
        said = child.outcome()
        assert said is not None and said[0] in ("table", "KeyboardInterrupt"), said
        if said[0] == "table":  # it came too late
            same(said[2], world.table)
        return said[0] != "table"


def fill(world, chance, out):
    """The disk is full from some moment on: no file can grow beyond a few bytes."""
    with Child(world, out) as child:
        if chance.random() < 0.8:
            child.wait_for(chance, world.usual)
        child.limit_files(chance.choice([0, chance.randrange(1, 4000), chance.randrange(40_000)]))
        said = child.outcome()
        if said[0] == "table":
            same(said[2], world.table)
            return False
        clear_of_folder(said, out)
        return True


def tiny_disk(world, chance, out):
    """A disk of a few pages, or of a few files; afterwards it is made larger."""
    room = chance.choice(
        [f"size={chance.randint(1, 24) * 4096}", f"nr_inodes={chance.randint(1, 14)}"]
    )
    with told(room):
        out.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", out], check=True)
        try:
            try:
                same(measuring.measure(world.folder, out), world.table)
                failed = False
            except StorageError as error:
                clear_of_folder(("StorageError", True, str(error)), out)
                failed = True
            more = "remount,size=16m,nr_inodes=1000"
            subprocess.run(["mount", "-o", more, "tmpfs", out], check=True)
            resume(world, chance, out)
        finally:
            subprocess.run(["umount", out], check=True)
        return failed


@functools.cache
def may_mount():
    """Whether this process may make a small disk; with no rights it may not."""
    asked = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", "/mnt"]
    try:
        return os.geteuid() == 0 and subprocess.run(asked, capture_output=True).returncode == 0
    except OSError:
        return False


def two_writers(world, chance, out):
    """Two processes on one folder, the second at a random moment; perhaps with another plan."""
    fewer = ("rms",) if chance.random() < 0.3 else measuring.STATISTICS
    with Child(world, out) as first:
        ends = time.monotonic() + world.usual * (chance.random() < 0.8)
        while time.monotonic() < ends and not (out / "lock").exists():
            time.sleep(0.001)
        time.sleep(chance.random() * world.usual * 0.2)
        with Child(world, out, fewer) as second:
            ends = [first.outcome(), second.outcome()]
    refused = [said for said in ends if said[0] != "table"]
    assert len(refused) < 2, ends
    for said, statistics in zip(ends, (measuring.STATISTICS, fewer)):
        if said[0] == "table" and statistics == measuring.STATISTICS:
            same(said[2], world.table)
    for said in refused:
        clear_of_folder(said, out)
        assert "another process" in said[2]
    return bool(refused)


def damage(world, chance, out):
    """The last part is not what was written: cut, its tail or a stretch of it zeroed."""
    if not parts(out):
        return False
    last = parts(out)[-1]
    data, at = bytearray(last.read_bytes()), chance.randrange(last.stat().st_size)
    how = chance.choice(["cut", "zeroed", "hole"])
    if how == "cut":
        del data[at:]
    else:
        size = len(data) if how == "zeroed" else chance.randint(1, 512)
        data[at : at + size] = bytes(len(data[at : at + size]))
    if data == last.read_bytes():
        return False
    with told(f"{how} at {at} of {last.stat().st_size}"):
        last.write_bytes(data)
        resume(world, chance, out, damaged=1)
    return True


ACTS = {
    "kill -9": kill,
    "SIGINT": interrupt,
    "full disk": fill,
    "two writers": two_writers,
    "last part damaged": damage,
}
ENDS = {
    "kill -9": "killed, same after a rerun",
    "SIGINT": "interrupted, same after a rerun",
    "last part damaged": SAME,
}


@pytest.mark.parametrize("kind", LOCAL)
def test_of_this_machine(world, ledger, kind):
    for what, chance in rounds(kind):
        with told(what):
            out, act = world.new(), ACTS[kind]
            if kind == "last part damaged":
                shutil.copytree(world.finished, out)
                for path in parts(out)[chance.randint(1, len(parts(out))) :]:
                    path.unlink()  # the power failed half way
            times = chance.choice([1, 2, 3]) if kind != "two writers" else 1
            if kind == "full disk" and may_mount() and chance.random() < 0.3:
                act, times = tiny_disk, 1
            seen = sum(act(world, chance, out) for _ in range(times))
            if act is not tiny_disk:
                resume(world, chance, out)
            shutil.rmtree(out)
        ledger.update({(kind, ENDS.get(kind, RESUMED)): seen})
        if ledger.total() >= QUOTA:
            return


def test_one_thing_after_another(world, ledger):
    """Bad days of one results folder: the server's faults, deaths, full disks, damage."""
    for what, chance in rounds("storm"):
        with told(what):
            out, seen = world.new(), Counter()
            for kind in chance.choices(
                ["server", *LOCAL], [3, 2, 2, 2, 1, 2], k=chance.randint(2, 4)
            ):
                if kind == "server":
                    kinds = chance.choices(list(KINDS), k=chance.randint(1, 3))
                    seen += http_run(world, chance, out, kinds, lasting=True)[0]
                    continue
                shots = [draw(chance, k, world.counts, False) for k in chance.choices(WEATHER, k=2)]
                mark = len(world.hub.log)
                world.hub.faults[:] = [Volley(shots)]
                with told(kind, *shots):
                    seen[kind] += ACTS[kind](world, chance, out)
                world.hub.faults.clear()
                hit = {id(r.fault) for r in world.hub.log[mark:] if r.fault}
                seen.update(s.kind for s in shots if id(s.fault) in hit)
            resume(world, chance, out)
            shutil.rmtree(out)
        ledger.update({(f"storm: {k}", "same after a rerun"): n for k, n in seen.items()})
        if ledger.total() >= QUOTA:
            return


# What a run survives, so that it can go on until something else ends it.
WEATHER = ("cut body", "429 without", "503", "connection reset")
