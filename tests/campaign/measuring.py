"""What is measured in the campaign, here and in children: the one place that knows its knobs.

Children are forked by a server process that has imported this module and started no thread, so
that one costs milliseconds and not the seconds that torch takes to import.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace

import huggingface_hub.hf_api  # noqa: F401 - imported here so that a forked child need not
import pyarrow.parquet  # noqa: F401
import torch  # noqa: F401

import analysis360 as a360
from analysis360.engine import measure as _measure  # noqa: F401
from analysis360.engine import schedule
from analysis360.errors import Analysis360Error
from analysis360.results import Parts
from analysis360.storage.http import HttpRanges
from analysis360.storage.hub import HubStore

REPO = "lab/small"
STATISTICS = ("rms", "max_abs", "nonfinite", "displacement", "cosine", "update_rms", "adam_snr")
AGAINST = ("previous", "partner", "ancestor")
SHAPES = {
    "model.embed_tokens.weight": (300, 128),
    "model.layers.0.self_attn.q_proj.weight": (64, 128),
    "model.layers.0.mlp.up_proj.weight": (200, 128),
    "model.layers.0.input_layernorm.weight": (128,),
    "lm_head.weight": (300, 128),
}
ATTEMPTS = 4
CALM, SHORT = 15.0, 0.4  # seconds without a byte: where nothing stalls, and where something does


def hurry(timeout=CALM):
    """Many small blocks and parts; short waits. What the package has no public knob for."""
    schedule.BLOCK = 20_000
    assert Parts.FLUSH_VALUES
    Parts.FLUSH_VALUES = 1
    for store in (HttpRanges, HubStore):
        defaults = store.__init__.__kwdefaults__
        assert {"attempts", "backoff", "timeout"} <= set(defaults)
        defaults.update(attempts=ATTEMPTS, backoff=0.01, timeout=timeout)


def measure(folder, out, statistics=STATISTICS):
    """From the Hub's copy of the run in `folder`, with what its description adds."""
    local = a360.open_run(folder)
    remote = a360.open_run(REPO, steps_per_number=100, tokens_per_step=1000)
    run = replace(
        remote, name="small",
        forks=local.forks, adam=local.adam, learning_rate=local.learning_rate,
    )  # fmt: skip
    return a360.plan(run, statistics, against=AGAINST).run(out, progress=False)


def _work(pipe, endpoint, folder, out, statistics):
    os.environ.update(HF_ENDPOINT=endpoint, NO_PROXY="127.0.0.1")
    hurry()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pipe.send("ready")
        said = ("table", True, measure(folder, out, statistics))
    except BaseException as error:
        said = (type(error).__name__, isinstance(error, Analysis360Error), str(error))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(said)


class Child:
    """A process that measures; killed at the end of the ``with`` block if it still runs."""

    def __init__(self, world, out, statistics=STATISTICS):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.out = out
        self.pipe, far = context.Pipe(duplex=False)
        given = (far, world.hub.endpoint, str(world.folder), str(out), statistics)
        self.process = context.Process(target=_work, args=given, daemon=True)
        self.process.start()
        far.close()
        assert self.pipe.poll(60) and self.pipe.recv() == "ready"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def wait_for(self, chance, usual):
        """Let a random time pass: of the usual whole, or a little after a random part landed."""
        if chance.random() < 0.4:
            self.pipe.poll(chance.random() * usual)
            return
        wanted, ends = chance.randint(1, 8), time.monotonic() + 2 * usual
        while len(parts(self.out)) < wanted and time.monotonic() < ends and not self.pipe.poll(0):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)

    def signal(self, which):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, which)

    def limit_files(self, nbytes):
        """Let no file of it grow beyond `nbytes` from now on, as if the disk were full."""
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (nbytes, hard))

    def outcome(self):
        """Kind, whether the package meant it, and the table or message; None if it was killed."""
        try:
            assert self.pipe.poll(60), "the process neither ended nor said anything for a minute"
            said = self.pipe.recv()
        except EOFError:
            said = None
        self.process.join(10)
        assert self.process.exitcode is not None, "the process has not ended 10 s after its result"
        return said


def parts(out):
    return sorted(out.glob("parts/*.parquet"))
