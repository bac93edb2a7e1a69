"""Which tokens the last gradients were about: python plot_tokens.py FOLDER."""

import sys
from pathlib import Path

import analysis360 as a360

run = a360.open_run(sys.argv[1])
a360.plan(run, ["v_row_top_share", "row_norm_median"], memory="1 GB").run("gallery_tokens")
vectors = a360.load_table("gallery_tokens", kind="vectors")
tokenizer = next(Path(sys.argv[1]).glob("checkpoints/*/tokenizer.json"))
ranked = a360.rank_tokens(vectors, tokenizer)
a360.plot_tokens(ranked, vectors).savefig("plot_tokens.png")
