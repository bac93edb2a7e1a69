"""Private memory, seen from outside the process, stays within what was given."""

import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

CODE = """
import sys, numpy, pandas, torch, pyarrow.parquet
import analysis360 as a360
import analysis360.engine.measure
from analysis360.stats import DEFAULT
torch.ones(300_000).to(torch.float64).sum()
print("imported", flush=True); sys.stdin.readline()
run = a360.open_run(sys.argv[1])
statistics = DEFAULT if sys.argv[4] == "sums" else (*DEFAULT, "stable_rank")
torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))
plan = a360.plan(run, statistics, memory=int(sys.argv[2]))
plan.run(sys.argv[3], progress=False)
print(plan.peak_nbytes, plan.nbytes, flush=True)
"""


def anonymous(pid):
    """Bytes of private anonymous memory of a process."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["RssAnon"].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("budget", "kind"),
    [(110_000_000, "sums"), (1_000_000_000, "sums"), (650_000_000, "spectra")],
)
def test_peak_private_memory(tmp_path, budget, kind):
    """Eight checkpoints of 0.2 GB, deltas between all of them, in a budget smaller than one."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 9 if kind == "sums" else 4):
        folder = tmp_path / "run" / f"step{step}"
        folder.mkdir(parents=True)
        weights = {
            f"model.layers.{i}.mlp.up_proj.weight": torch.randn(
                8192, 4096, generator=generator
            ).bfloat16()
            for i in range(3)
        }
        save_file(weights, folder / "model.safetensors")
    arguments = [str(tmp_path / "run"), str(budget), str(tmp_path / "out"), kind]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "imported\n"
    before = peak = anonymous(process.pid)
    process.stdin.write("go\n")
    process.stdin.close()
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.003)
    said = process.stdout.read().split()
    process.stdout.close()
    assert process.returncode == 0
    print(
        f"budget {budget / 1e6:.0f} MB, plan {int(said[0]) / 1e6:.0f} MB, seen {(peak - before) / 1e6:.0f} MB"
    )
    assert peak - before <= budget
    assert int(said[0]) <= budget
