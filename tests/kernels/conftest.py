"""Kernels without a GPU: interpreted in a process of its own, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import interpreting
import pytest
from kernel_checks import Run

# The files themselves are not read without triton: launches import it.
NEEDED = "triton is not installed: `make kernels` installs it (1 GB, Linux) and runs these tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("triton") is None:
        for item in items:
            if "tests/kernels/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=NEEDED))


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """`interpreting.call` in the interpreter's process."""
    with interpreting.started() as pool:

        def interpreted(*given: Any, **named: Any) -> dict[str, Any]:
            return pool.submit(interpreting.call, *given, **named).result(timeout=120)

        yield interpreted
