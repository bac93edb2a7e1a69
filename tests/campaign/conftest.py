"""The campaign's account, printed at the end whatever the outcome, also over xdist's workers."""

import json
from collections import Counter


def pytest_terminal_summary(terminalreporter):
    seen, seeds = Counter(), set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") != "teardown":  # the account is complete then
                continue
            for name, value in report.user_properties:
                if name == "campaign":
                    said = json.loads(value)
                    seeds.add(said["seed"])
                    seen.update({(kind, outcome): n for kind, outcome, n in said["faults"]})
    if not seeds:
        return
    kinds, outcomes = sorted({k for k, _ in seen}), sorted({o for _, o in seen})
    wide, write = max(map(len, kinds)), terminalreporter.write_line
    terminalreporter.section(f"fault campaign, ANALYSIS360_SEED={', '.join(map(str, seeds))}")
    write(f"{'':{wide}}  faults" + "".join(f"  {o}" for o in outcomes))
    for kind in [*kinds, "all"]:
        mine = [sum(seen[k, o] for k in kinds if kind in (k, "all")) for o in outcomes]
        row = "".join(f"  {n:>{len(o)}}" for n, o in zip(mine, outcomes))
        write(f"{kind:{wide}}  {sum(mine):>6}{row}")
