"""minilm-3: where `make distilled` puts the student, out/distilled/minilm-3 below the current directory.

BERTC_MINILM_3 names another place.
"""

from __future__ import annotations

import os
from pathlib import Path

from bertc.core import SourceError

PLACE = Path("out/distilled/minilm-3")


def __getattr__(name: str) -> Path:
    """MODEL_DIR, when it is asked for: a student is made, not installed."""
    if name != "MODEL_DIR":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = Path(os.environ.get("BERTC_MINILM_3") or PLACE)
    if not (found / "config.json").is_file():
        raise SourceError(
            f"recipe minilm-3: there is no student in {found}; make it with `make distilled` in bertc's repository, or with "
            f"`bertc distill minilm --layers 3 --data TEXTS -o {PLACE}`; --source DIR takes another one"
        )
    return found
