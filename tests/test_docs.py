"""What the documentation says is run: every Python block, every script of the gallery, every link.

A block that cannot run here has ``<!-- not run: reason -->`` on the line above it.
"""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from analysis360 import stats

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.py"))
REGISTRIES = (stats.states, stats.accumulators, stats.wholes, stats.terms, stats.statistics)

NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and source of each Python block that is to be run."""
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if start is None and re.match(r"\s*(```+|~~~+)\s*(python|py)\b", line):
            start = number + 1
        elif start is not None and re.match(r"\s*(```+|~~~+)\s*$", line):
            before = lines[start - 2].strip() if start > 1 else ""
            if not NOT_RUN.fullmatch(before):
                found.append((start, "\n".join(lines[start:number])))
            start = None
    assert start is None, f"{name(page)}: a block is not closed"
    return found


@pytest.fixture
def here(tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader is: the demo run beside them; what they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "analysis360-demo").symlink_to(tiny_demo, target_is_directory=True)
    before = [dict(registry.items()) for registry in REGISTRIES]
    yield tmp_path
    for registry, known in zip(REGISTRIES, before, strict=True):
        for added in set(registry) - set(known):
            registry.remove(added)
        for there, entry in known.items():
            registry.add(there, entry)
    plt.close("all")


# those of docs/statistics are run, and what they print is checked, by tests/test_statistic_pages.py
WITH_BLOCKS = [page for page in PAGES if page.parent.name != "statistics" and blocks(page)]


@pytest.mark.pages
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_blocks_run(page: Path, here: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, source in blocks(page):
        # blank lines before it, so that a traceback has the page's own line numbers
        exec(compile("\n" * line + source, name(page), "exec"), namespace)


def test_pages_that_are_promised() -> None:
    said = [name(page) for page in WITH_BLOCKS]
    assert {"README.md", "docs/howto/own_run.md", "docs/howto/statistic.md"} <= set(said)


@pytest.mark.pages
@pytest.mark.parametrize("script", GALLERY, ids=name)
def test_gallery(script: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "analysis360-demo"])
    runpy.run_path(str(script), run_name="__main__")
    drawn = list(here.glob("*.png"))
    assert drawn and all(png.stat().st_size > 5_000 for png in drawn)
    assert all(png.name.startswith(script.stem) for png in drawn)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ +(.+?) *$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)}: {target} does not exist"
        assert there.is_relative_to(ROOT), f"{name(page)}: {target} is outside the repository"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name(page)}: {target}: no such heading"


def test_not_run_needs_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: a reason -->\n```python\n1\n```\n\n```python\n2\n```\n")
    assert blocks(page) == [(6, "2")]
    page.write_text("<!-- not run: -->\n```python\n1\n```\n")
    assert blocks(page) == [(2, "1")]
