"""A demo run in its tiny configuration, trained once for all tests that need a whole run on disk."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run; tests read it and do not write into it."""
    from analysis360.demo import TINY, train_demo

    return train_demo(tmp_path_factory.mktemp("tiny-demo") / "run", TINY, progress=False)
