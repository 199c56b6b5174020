"""What a config.json may not make transformers do: run code, or read other files than those that were checked and hashed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import SourceError, check_link, counted, shown_value
from .weight_files import longest, tensor_count

# transformers reads the file named here in place of config.json, or of the weights.
REDIRECTS = {"configuration_files": "another config", "transformers_weights": "another file of weights"}
KERNEL_KEYS = ("attn_implementation", "experts_implementation")  # "ORG/NAME" in one of them is code on the hub, which is run
# What a model has so many of: transformers and torch make a list, or go round a loop, for each before the first weight is read.
LAYERS = re.compile(r"(^|_)(layers?|blocks|depths?)$")
COUNTS = re.compile(r"(^|_)(num|n)_(\w+_)?(heads?|groups?|experts|labels|buckets)$")
FEW, MANY = 100, 10**5
READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja", ".py")


def check_config(path: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raises SourceError for a config that names code, unless that is trusted, and for one that names other files."""
    for key, what in REDIRECTS.items():
        if config.get(key):
            raise SourceError(
                f"{path} names {what} ({key}: {config[key]!r:.100}), which transformers would read unchecked; "
                "save the model with save_pretrained, or rename that file and remove the key"
            )
    if trust_remote_code:
        return
    if config.get("auto_map"):
        named = config["auto_map"]
        classes = named.values() if isinstance(named, dict) else [named]
        raise SourceError(
            f"{path.parent} needs Python code of its own ({', '.join(map(str, classes))}), which would be "
            "executed; read that code, then pass --trust-remote-code"
        )
    for key, value in _entries(config):
        if str(key).endswith(KERNEL_KEYS) and "/" in str(value):
            raise SourceError(
                f"{path} names a kernel of the hub ({key}: {str(value)!r:.100}), which transformers would download and run; "
                "remove the key: bertc exports the eager attention"
            )


def check_counts(path: Path, config: Mapping[str, Any], weights: Sequence[Path]) -> None:
    """Raises SourceError for more layers than tensors in the weights, for more heads, groups or classes than their tensors are
    long (100 and 100,000 are taken in any case), and for less than none."""
    tensors = tensor_count(weights)
    layers, others = max(FEW, tensors or 0), max(MANY, longest(weights))
    for key, value in _entries(config):
        most, what = (layers, "layers") if LAYERS.search(str(key)) else (others, "")
        if not what and not COUNTS.search(str(key)):
            continue
        numbers = value if isinstance(value, list) else [value]
        counts = [each for each in numbers if isinstance(each, int) and not isinstance(each, bool)]
        found = sum(counts)
        if min(counts, default=0) < 0:
            raise SourceError(f"{path}: {key} is {shown_value(min(counts))}, less than none: correct it")
        if found > most:
            held = f"; the weights have {counted(tensors, 'tensor')}" if what and tensors is not None else ""
            raise SourceError(f"{path}: {key} is {shown_value(found)}, bertc takes up to {most}{held}: correct it")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, also of the objects inside: composite models have a config each."""
    left: list[Any] = [config]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            yield from found.items()
            left += found.values()
        elif isinstance(found, list):
            left += found


def check_links(folder: Path, root: Path) -> None:
    """Raises SourceError where a file of a folder that a library may read is a link out of the directory that was asked for."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in READ and file.is_symlink():
            check_link(file, root)
