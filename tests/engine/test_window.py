"""A window of two branches with weights, deltas, partners and moments: each needed byte once."""

from collections import Counter, defaultdict

import pytest

import analysis360 as a360
from tests.hub_server import HubServer, serve_run
from tests.small_run import small_run

SHAPES = {
    "model.embed_tokens.weight": (2400, 512),
    "model.layers.0.self_attn.q_proj.weight": (512, 512),
    "model.layers.0.mlp.up_proj.weight": (1536, 512),
    "model.layers.0.input_layernorm.weight": (512,),
    "model.layers.1.self_attn.q_proj.weight": (512, 512),
    "model.layers.1.mlp.up_proj.weight": (1536, 512),
    "model.layers.1.input_layernorm.weight": (512,),
    "lm_head.weight": (2400, 512),
}


@pytest.mark.slow
@pytest.mark.parametrize("block", [1 << 23, 1 << 18])
def test_each_needed_byte_is_fetched_once(tmp_path, monkeypatch, block):
    """Checkpoints 2, 3, 4 of both branches; the server's log is what counts."""
    from analysis360.engine import schedule

    monkeypatch.setattr(schedule, "BLOCK", block)
    folder = small_run(tmp_path / "run", shapes=SHAPES)
    serve_run(folder / "checkpoints", tmp_path / "hub", "lab/window")
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        from dataclasses import replace

        remote = a360.open_run("lab/window", steps_per_number=100, tokens_per_step=1000)
        local = a360.open_run(folder)
        run = replace(remote, forks=local.forks, adam=local.adam).select(number=slice(2, 4))
        plan = a360.plan(run, against=("previous", "partner"), states=("weight", "exp_avg"))
        assert len(plan.checkpoints) == 6
        table = plan.run(tmp_path / "m", progress=False)
        log = hub.log
    assert set(table["state"]) == {"weight", "exp_avg", "adam"}
    assert {"", "previous", "partner"} == set(table["against"])

    headers = Counter((plan.checkpoints[c].revision, f, o, o + n) for c, f, o, n in plan.probes)
    ranges = defaultdict(list)
    for request in log:
        probe = (request.rev, request.file, request.start, request.stop)
        if headers[probe]:  # of the start of each file, whose length is not known before
            headers[probe] -= 1
        elif request.status == 206:
            ranges[request.rev, request.file].append((request.start, request.stop))
    needed, fetched = 0, 0
    for c, mine in enumerate(plan.tensors):
        revision = plan.checkpoints[c].revision
        for tensor in mine.values():
            for part in tensor.parts:
                low, high = part.offset, part.offset + part.nbytes
                seen = [
                    (max(low, start), min(high, stop))
                    for start, stop in ranges[revision, part.file]
                    if start < high and stop > low
                ]
                seen.sort()
                assert seen[0][0] == low and seen[-1][1] == high, tensor.key
                once = all(a[1] == b[0] for a, b in zip(seen, seen[1:]))
                # A smaller one may lie in the gap between two others that are read as one
                assert once or part.nbytes <= schedule.GAP, tensor.key
                needed += part.nbytes
    fetched = sum(request.sent for request in log if request.method == "GET" and request.file)
    print(f"needed {needed:,}, sent {fetched:,}: {100 * (fetched / needed - 1):.2f} % more")
    assert fetched < 1.01 * needed
    resolved = Counter((r.rev, r.file) for r in log if r.method == "HEAD" and r.file)
    assert len(resolved) == 6 * 4 and set(resolved.values()) == {1}  # two shards, index, moments
