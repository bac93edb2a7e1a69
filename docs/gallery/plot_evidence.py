"""Evidence for and against ten mechanisms of a loss spike: python plot_evidence.py FOLDER."""

import sys

import analysis360 as a360

run = a360.open_run(sys.argv[1])
statistics = [*a360.stats.DEFAULT, *a360.EVIDENCE_STATISTICS]
against = ["previous", "partner", "ancestor"]
a360.plan(run, statistics, against=against, memory="1 GB").run("gallery_evidence")
table = a360.load_table("gallery_evidence")
evidence = a360.weigh_evidence(
    table, "spike", to="normal", placebos=["placebo"], loss=a360.read_loss(run)
)
a360.plot_evidence(a360.evidence_matrix(evidence)).savefig("plot_evidence.png")
