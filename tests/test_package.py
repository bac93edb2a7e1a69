"""The wheel holds the package with its data files, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import analysis360

PACKAGE = Path(analysis360.__file__).parent


@pytest.mark.slow  # fetches the build backend
def test_the_wheel_holds_every_file(tmp_path):
    root = PACKAGE.parent
    listing = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, check=True)
    listed = listing.stdout.decode().split()
    for name in listed:  # a copy: what an earlier build left in the checkout is not packed
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / "copy" / name)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "copy")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert packed == {name for name in listed if name.startswith("analysis360/")}
    assert "analysis360/catalog/runs/k2.toml" in packed
    assert "analysis360/catalog/disclosure.csv" in packed
    assert "analysis360/report/template.html" in packed
    assert "analysis360/report/page.js" in packed
