"""The checkpoint of all-MiniLM-L6-v2 with its first layers alone: real weights, a real tokenizer, quick to export."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def checkpoint(whole: Path, path: Path, layers: int) -> Path:
    """Write the first `layers` of `whole` to `path`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(whole, path, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((path / "config.json").read_text("utf-8"))
    assert settings["num_hidden_layers"] > layers
    (path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": layers}), encoding="utf-8")
    tensors = load_file(whole / "model.safetensors")
    kept = {name: each for name, each in tensors.items() if not (found := LAYER.search(name)) or int(found[1]) < layers}
    assert len(kept) < len(tensors)
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    return path
