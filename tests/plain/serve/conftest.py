"""Artifacts that the tests of the server share."""

from __future__ import annotations

from pathlib import Path

import pytest
import served


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact of each kind."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {kind: served.artifact(folder, kind) for kind in served.HEADS}
