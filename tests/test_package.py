"""The wheel holds the package with its data files, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import analysis360

PACKAGE = Path(analysis360.__file__).parent


@pytest.mark.slow  # fetches the build backend
def test_the_wheel_holds_every_file(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        str(tmp_path),
        str(PACKAGE.parent),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    listed = subprocess.run(
        ["git", "ls-files", "analysis360"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert packed == set(listed)
    assert (
        "analysis360/catalog/runs/k2.toml" in packed
        and "analysis360/report/template.html" in packed
    )


def test_catalogue_files_are_well_formed():
    import analysis360 as a360
    from analysis360.runs import _catalogue

    assert set(a360.list_runs()["name"]) == set(_catalogue())
