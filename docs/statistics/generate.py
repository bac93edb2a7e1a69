"""Write the pages of this folder: one for each statistic, and a table of all.

Everything on them comes from the registry: what a statistic says of itself where it is defined.

    python docs/statistics/generate.py          write them all; the examples are run
    python docs/statistics/generate.py --check  say what would change, and change nothing
"""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

import analysis360 as a360
from analysis360 import stats
from analysis360.listing import reads
from analysis360.stats import SCALARS, Statistic

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only slow such small examples down

HERE = Path(__file__).parent
COMMAND = "python docs/statistics/generate.py"

TOPICS = {
    "Weights: norms, moments, counts": ("moments",),
    "Weights: tails, quantiles, rounding": ("tails", "bins", "rounding"),
    "Gains of norms": ("gains",),
    "Rows and vocabularies": ("rows",),
    "Change: against another checkpoint": ("change", "geometry"),
    "Spectra": ("spectrum", "singular", "subspace"),
    "Attention": ("logits",),
    "Adam: the update": ("adam", "updates"),
    "Adam: signal and noise": ("snr",),
    "Adam: the second moment": ("preconditioner",),
    "Adam: directions": ("directions",),
    "Checks": ("checks",),
    "Tables of a whole run": ("branches", "profiles", "invariants", "tokens"),
}
"""Heading to modules, in the order of the table; others follow under their own name."""


# -- words -----------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """A docstring's mark-up as GitHub's: formulas, names of code, headings of sections."""
    text = re.sub(r"^\.\. math::\s*\n((?:\n|[ \t]+\S.*\n?)+)", _displayed, text, flags=re.M)
    text = re.sub(r":math:`([^`]+)`", lambda m: f"$`{_formula(m[1])}`$", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"^(\w[\w ]*)\n-{3,}$", r"### \1\n", text, flags=re.M).strip()


def _displayed(match: re.Match[str]) -> str:
    lines = " ".join(line.strip() for line in match[1].strip().splitlines())
    return f"```math\n{lines}\n```\n"


def _formula(text: str) -> str:
    """On one line, and without bars, which would divide the cells of a table."""
    text = " ".join(text.split())
    return text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def paragraphs(text: str) -> str:
    """A section of a docstring: its indented lines are text, not code."""
    first, _, rest = text.strip("\n").partition("\n")
    if not rest.startswith(" "):
        return markdown(text)
    defined = re.sub(  # a term, and what it is below
        r"^(``.+``)\n((?: {4}.+\n?)+)",
        lambda m: f"- {m[1]}: {' '.join(m[2].split())}\n",
        inspect.cleandoc(rest),
        flags=re.M,
    )
    return markdown(f"{first}:\n{defined}")


def cell(text: str) -> str:
    return markdown(text).replace("\n", " ").replace("|", r"\|")


def number(value: Any) -> str:
    return f"{float(value):.4g}"


def size(nbytes: int) -> str:
    if nbytes < 2**20:
        return f"{nbytes / 2**10:,.0f} KiB"
    return f"{nbytes / 2**20:,.0f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"


def sections(docstring: str) -> dict[str, str]:
    """Parts of a numpydoc docstring by heading; what comes before the first is ``""``."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", docstring, flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


# -- what a page says ------------------------------------------------------------------------------


def facts(row: pd.Series) -> list[tuple[str, str]]:
    """What the table says of a statistic, in words; what is not known is left out."""
    entry = stats.statistics[row["name"]]
    return [
        ("In the catalogue", row["code"]),
        ("Defined in", f"`{entry.function.__module__}`"),
        ("Reads", row["reads"]),
        ("Scalars", ", ".join(f"`{name}`" for name in row["scalars"].split(", ") if name)),
        ("Compares", "two checkpoints: see `against`" if row["compares"] else "no"),
        ("Cost", cost(row)),
        ("Measured by default", "yes" if row["default"] else "no, ask for it by name"),
        ("Unit", row["unit"] or "none"),
        ("Bounds", bounds(row)),
        ("Scale", scale(row)),
        ("Unchanged by", row["invariant"]),
        ("Of several tensors", merging(entry)),
        ("Not defined (NaN)", row["undefined"]),
        ("Null, thresholds", row["null"]),
        ("Source", row["source"]),
        ("Figure", row["figure"]),
    ]


def cost(row: pd.Series) -> str:
    kinds = row["cost"].split(", ")
    words = [kind for kind in kinds if not kind.startswith("whole")]
    said = [f"{' and '.join(words)}, in the one pass over what is read"] if words else []
    sides = {
        "whole matrix": "8192 × 8192", "whole vector": "8192 elements",
        "whole head": "heads of 128 × 8192",
    }  # fmt: skip
    for kind in kinds:
        if kind in sides:
            said.append(
                f"the {kind} at once, and {size(row['workspace'])} above it for {sides[kind]}"
            )
    return "; ".join(said)


def bounds(row: pd.Series) -> str:
    low, high = row["low"], row["high"]
    if pd.isna(low) and pd.isna(high):
        return ""
    if pd.isna(high):
        return f"at least {number(low)}"
    return f"at most {number(high)}" if pd.isna(low) else f"{number(low)} to {number(high)}"


def scale(row: pd.Series) -> str:
    """How it changes when all that it reads is multiplied by c > 0."""
    if pd.isna(row["degree"]):
        return ""
    if row["degree"] == 0:
        return "does not depend on the tensor's scale"
    power = "" if row["degree"] == 1 else f" to the power {number(row['degree'])}"
    return f"in proportion to the tensor{power}"


MERGES = {
    "sum": "{} added", "max": "the largest {}", "min": "the smallest {}",
    "moments": "{} merged exactly",
}  # fmt: skip


def merging(entry: Statistic) -> str:
    """What `load_table(by="layer")` does with the results that it is made of."""
    named: dict[str, list[str]] = {}
    for name in entry.inputs:
        if name not in SCALARS:
            named.setdefault(how(name), []).append(f"`{name}`")
    if not set(named) <= set(MERGES):
        return "not defined for more than one tensor"
    parts = [MERGES[kind].format(", ".join(names)) for kind, names in named.items()]
    return f"{'; '.join(parts)}; then the statistic"


def how(name: str) -> str:
    """How a result merges over tensors."""
    if name in stats.terms:
        return "sum"
    owner = stats.field_owner(name)
    if isinstance(owner, stats.Accumulator) and owner.axis is not None:
        return "none"
    return owner.fields.get(name) or owner.fields.get(f"{name}[0]", "none")


# -- examples --------------------------------------------------------------------------------------

MATRIX = "torch.sin(torch.arange(256.0) ** 2).view(16, 16)"

NAMES = {
    "attn.q": "model.layers.0.self_attn.q_proj.weight",
    "attn.k": "model.layers.0.self_attn.k_proj.weight",
    "attn.v": "model.layers.0.self_attn.v_proj.weight",
    "attn.o": "model.layers.0.self_attn.o_proj.weight",
    "norm.attn": "model.layers.0.input_layernorm.weight",
}


SETTINGS = {
    "lr", "lr_sum", "lr_sq_sum", "decay", "clip", "weight_decay",
}  # fmt: skip
"""Scalars that only the description of a run tells, or an optimizer."""


def example(row: pd.Series) -> str:
    """A program that prints the statistic of something small, in the fewest lines for its kind."""
    name, entry = row["name"], stats.statistics[row["name"]]
    of = next((m.of for m in entry.measures if getattr(m, "of", None)), {})
    moments = "any state" not in row["reads"] and not of
    told = set(row["scalars"].split(", ")) & SETTINGS
    imports: list[str] = []
    lines = _training(row["compares"]) if moments else _weights(row["compares"], of, vector(entry))
    given = '{"w": weight}, optimizer' if moments else "model" if of else '{"w": w}'
    if row["compares"]:
        imports.append("from analysis360.runs import open_memory")
        if moments:
            imports.append("from copy import deepcopy")
    elif told - ({"lr", "weight_decay"} if moments else set()):
        imports.append("from analysis360.runs import open_memory")
        lines += f"run = open_memory({given}, step=40)\n"
    if of:
        imports += ["from pathlib import Path"]
        imports += ["from safetensors.torch import save_file"]
        lines += f'table = a360.plan(run, ["{name}"], per_head=True).run(progress=False)\n'
    elif "open_memory" not in lines:
        lines += f'table = a360.measure({given}, statistics=["{name}"])\n'
    else:
        said, more = _told(told, moments)
        imports += more
        against = '["previous"]' if row["compares"] else "[]"
        lines += (
            f'{said}table = a360.plan(run, ["{name}"], against={against}).run(progress=False)\n'
        )
    lines += f"print(f\"{{table['{name}'].dropna().iloc[-1]:.4g}}\")\n"
    return _imported(imports) + lines


def vector(entry: Statistic) -> bool:
    """Whether it is a statistic of vectors only."""
    return any(isinstance(m, stats.Whole) and m.ndim == 1 and not m.of for m in entry.measures)


def _told(scalars: set[str], moments: bool) -> tuple[str, list[str]]:
    """Lines that tell a run how it was trained, and what they import."""
    parts, imports = [], []
    if scalars & {"lr", "lr_sum", "lr_sq_sum", "decay"}:
        parts.append("learning_rate=LearningRate(peak=0.01, final=0.001, warmup=0, total=40)")
        imports.append("LearningRate")
    if scalars & {"clip", "weight_decay", "decay"}:
        decay = "weight_decay=0.1" if scalars & {"weight_decay", "decay"} else ""
        clip = "clip=1.0" if "clip" in scalars else ""
        inner = ", ".join(part for part in (decay, clip) if part)
        if moments:  # the optimizer has told the rest
            parts.append(f"adam=replace(run.adam, {inner})")
        else:
            parts.append(f"adam=Adam({inner})")
            imports.append("Adam")
    if not parts:
        return "", []
    core = [f"from analysis360.core import {', '.join(sorted(imports))}"] if imports else []
    separator = ",\n    "
    lines = f"run = replace(\n    run,\n    {separator.join(parts)},\n)\n"
    return lines, ["from dataclasses import replace", *core]


def _weights(compares: bool, of: Any, one_dimension: bool) -> str:
    if of:
        return _layer(of)
    if one_dimension:
        return "w = 1 + 0.1 * torch.sin(torch.arange(256.0) ** 2)\n"
    lines = f"w = {MATRIX}\n"
    if compares:
        lines += (
            'before = open_memory({"w": w}, step=20)\n'
            'after = open_memory({"w": 0.99 * w + 0.05 * w.T}, step=40)\n'
            'run = a360.merge_runs([before, after], "two checkpoints")\n'
        )
    return lines


def _training(compares: bool) -> str:
    """A few steps of AdamW on gradients that agree in part."""
    lines = (
        f"weight = torch.nn.Parameter({MATRIX})\n"
        "optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95))\n"
    )
    step = (
        "    weight.grad = 0.5 + torch.sin(torch.arange(256.0) ** 2 + step).view(16, 16)\n"
        "    optimizer.step()\n"
    )
    if not compares:
        return f"{lines}for step in range(40):\n{step}"
    return (
        f"{lines}checkpoints = []\nfor step in range(1, 41):\n{step}"
        "    if step in (20, 40):\n"
        '        now = deepcopy(({"w": weight}, optimizer))\n'
        "        checkpoints.append(open_memory(*now))\n"
        'run = a360.merge_runs(checkpoints, "two checkpoints")\n'
    )


def _layer(of: Any) -> str:
    """One layer with two heads, in a folder: its weights do not tell how many heads they are of."""
    lines = f"w = {MATRIX}\nmodel = {{\n"
    for place, module in enumerate(of.values()):
        made = "torch.full((16,), 0.5)" if module.startswith("norm") else f"w.roll({place})"
        lines += f'    "{NAMES[module]}": {made},\n'
    return lines + (
        "}\n"
        'folder = Path("one-layer")\nfolder.mkdir()\n'
        '(folder / "config.json").write_text(\'{"hidden_size": 16, "num_attention_heads": 2}\')\n'
        'save_file(model, folder / "model.safetensors")\n'
        "run = a360.open_run(folder)\n"
    )


def _imported(extra: Iterable[str]) -> str:
    """Imports in the usual order: of Python, of others, of this package."""
    extra = sorted(extra, key=lambda line: (line.startswith("from"), line))
    ours = [line for line in extra if "analysis360" in line]
    others = [line for line in extra if "safetensors" in line]
    python = [line for line in extra if line not in ours and line not in others]
    blocks = [python, ["import torch", *others], ["import analysis360 as a360", *ours]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n\n"


def frame_example(name: str, docstring: str) -> str:
    """The example in a docstring, as a program."""
    found = doctest.DocTestParser().get_examples(docstring)
    lines = [
        f"print({part.source.strip()})" if part.want else part.source.rstrip() for part in found
    ]
    source = "\n".join(lines)
    imports = [f"from analysis360 import {name}"]
    if not re.search(rf"(?<![\w.]){name}\(", source):
        imports = []
    used = {"np.": "import numpy as np", "pd.": "import pandas as pd"}
    first = [line for word, line in used.items() if word in source and line not in source]
    blocks = ["\n".join(first), "\n".join(imports)]
    return "\n\n".join([block for block in blocks if block] + [source]) + "\n"


def printed(source: str) -> str:
    """What an example prints."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with contextlib.redirect_stdout(said):
            exec(compile(source, "example", "exec"), {"__name__": "example"})  # noqa: S102
    return said.getvalue().rstrip()


# -- pages -----------------------------------------------------------------------------------------


def page(row: pd.Series, run: Callable[[str], str] = printed) -> str:
    """The page of one statistic; `run` gives what its example prints."""
    function = _function(row)
    said = sections(inspect.getdoc(function) or "")
    text = [f"# {row['name']}", markdown(said.pop(""))]
    if row["kind"] == "frame":
        text.append(f"A function from one table to another: `analysis360.{row['name']}`.")
        text += [
            f"## {name}\n\n{paragraphs(said[name])}"
            for name in ("Returns", "Notes")
            if name in said
        ]
        source = frame_example(row["name"], said.get("Examples", ""))
    else:
        text += [f"## {name}\n\n{markdown(said[name])}" for name in ("Notes",) if name in said]
        known = [f"| {name} | {cell(value)} |" for name, value in facts(row) if value]
        text.append("\n".join(["| | |", "|---|---|", *known]))
        source = example(row)
    text.append(f"## Example\n\n```python\n{source.rstrip()}\n```")
    text.append(f"```text\n{run(source)}\n```")
    text.append("[All statistics](index.md)")
    return "\n\n".join(text) + "\n"


def _function(row: pd.Series) -> Callable[..., Any]:
    if row["kind"] == "statistic":
        return stats.statistics[row["name"]].function
    found: Callable[..., Any] = getattr(import_module(f"analysis360.{row['topic']}"), row["name"])
    return found


def index(table: pd.DataFrame) -> str:
    """The table of all, by topic."""
    text = [
        "# Statistics",
        f"{len(table)} statistics, each with a page: what it is, when it is not defined, what it\n"
        "reads and costs, what it is for pure noise and how that is known, and an example.\n"
        "`analysis360.list_statistics()` is the same as a frame. Those in **bold** are measured\n"
        "when nothing is asked for; the others are asked for by name. Codes are those of the\n"
        "package's catalogue: S is for what a study of a spike needs, T for what helps. What a\n"
        "statistic of your own can be made of: [fields.md](fields.md).",
        "To add one of your own: [howto/statistic.md](../howto/statistic.md). "
        f"These pages are generated: `{COMMAND}`.",
    ]
    known = {module for modules in TOPICS.values() for module in modules}
    others = [topic for topic in dict.fromkeys(table["topic"]) if topic not in known]
    for heading, modules in (TOPICS | {topic: (topic,) for topic in others}).items():
        rows = table[table["topic"].isin(modules)]
        if len(rows):
            lines = ["| | | what | reads | cost |", "|---|---|---|---|---|"]
            lines += [_line(row) for _, row in rows.iterrows()]
            text += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(text) + "\n"


def _line(row: pd.Series) -> str:
    link = f"[{row['name']}]({row['name']}.md)"
    name = f"**{link}**" if row["default"] else link
    cells = (row["code"], cell(row["summary"]), row["reads"], row["cost"])
    return f"| {name} | {' | '.join(cells)} |"


def fields() -> str:
    """The page of what a statistic can name."""
    text = [
        "# Results and scalars",
        "What a [statistic](../howto/statistic.md) may name as a parameter. Of several tensors,\n"
        "sums are added, the largest and the smallest taken; what is given for each row or column\n"
        "is an array, and is for one tensor only.",
        "## Accumulators\n\nOne pass, tile by tile.",
        _table_of(stats.accumulators),
        "## Whole-matrix steps\n\nOne tensor at once; the workspace is in the plan's memory.",
        _table_of(stats.wholes),
        "## Terms\n\nMade of one tensor's results and scalars, and then added.",
        _terms(),
        "## Scalars",
        ", ".join(f"`{name}`" for name in SCALARS) + ".",
        markdown(inspect.cleandoc(SCALARS_SAID)),
        "[All statistics](index.md)",
    ]
    return "\n\n".join(text) + "\n"


SCALARS_SAID = """
`step` is the optimizer's, per parameter; `lr` is the learning rate at the checkpoint. Over the
steps between the two checkpoints of a comparison `lr_sum` is the sum of the learning rate,
`lr_sq_sum` that of its square, and `decay` what weight decay alone would have left of a weight. One
that is not known is NaN.
"""


def _table_of(registry: Any) -> str:
    lines = ["| | reads | results |", "|---|---|---|"]
    for name, entry in registry.items():
        if entry.function.__module__.startswith("analysis360."):
            lines.append(f"| `{name}` | {', '.join(reads(entry))} | {results(entry)} |")
    return "\n".join(lines)


def _terms() -> str:
    lines = ["| | of | what |", "|---|---|---|"]
    for name, entry in stats.terms.items():
        if entry.function.__module__.startswith("analysis360."):
            of = ", ".join(f"`{name}`" for name in entry.inputs)
            said = (inspect.getdoc(entry.function) or "").splitlines()[0]
            lines.append(f"| `{name}` | {of} | {cell(said)} |")
    return "\n".join(lines)


def results(entry: Any) -> str:
    """Names of results, by how those of two tiles or tensors become one."""
    by: dict[str, list[str]] = {}
    for field, kind in entry.fields.items():
        names = by.setdefault(kind, [])
        name = f"`{field.partition('[')[0]}`"
        if name not in names:
            names.append(name)
    axis = getattr(entry, "axis", None)
    said = {"rows": "{}: one number for each row", "none": "{}"} | MERGES
    parts = [said[kind].format(", ".join(names)) for kind, names in by.items()]
    if axis == "columns":
        parts = [f"{part}, for each column" for part in parts]
    if getattr(entry, "vector", None):
        parts.append(f"`{entry.vector}`: a vector")
    return "; ".join(parts)


def pages(run: Callable[[str], str] = printed) -> dict[str, str]:
    """File name to text, of all pages."""
    table = a360.list_statistics()
    table = table[[_ours(row) for _, row in table.iterrows()]]
    made = {f"{row['name']}.md": page(row, run) for _, row in table.iterrows()}
    return {"index.md": index(table), "fields.md": fields(), **made}


def _ours(row: pd.Series) -> bool:
    """Whether it belongs to the package: what somebody registered in this process has no page."""
    return _function(row).__module__.startswith("analysis360.")


def main(arguments: list[str]) -> int:
    made = pages()
    there = {path.name: path.read_text("utf-8") for path in HERE.glob("*.md")}
    changed = sorted(name for name in made if made[name] != there.get(name))
    gone = sorted(set(there) - set(made))
    for name in [*changed, *gone]:
        print(name)
    if "--check" in arguments:
        return int(bool(changed or gone))
    for name in changed:
        (HERE / name).write_text(made[name], encoding="utf-8")
    for name in gone:
        (HERE / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
