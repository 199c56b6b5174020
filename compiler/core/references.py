"""What a user types for a source: whether it can only be a path."""

from __future__ import annotations

from pathlib import Path, PurePath

from .errors import SourceError

SUFFIXES = frozenset(
    {
        *(".onnx", ".ort", ".toml", ".json", ".py", ".zip", ".tar", ".gz", ".tgz"),
        *(".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".h5", ".pb", ".tflite", ".gguf", ".npz"),
        *(".engine", ".plan", ".trt"),
    }
)  # of files that people have; the names of the hub do not end so


def is_path(reference: str) -> bool:
    """Whether a reference can only be a path, be it there or not: never a recipe's name or a hub id."""
    if reference in (".", "..") or reference.startswith(("/", "./", "../", "~")) or reference.endswith("/"):
        return True
    if PurePath(reference).suffix.lower() in SUFFIXES or reference.count("/") > 1:
        return True
    return Path(reference).parent.is_file()


def expand(reference: str) -> Path:
    """The path of a reference, `~` in it replaced. SourceError for the home of a user whom this machine does not have."""
    try:
        return Path(reference).expanduser()
    except RuntimeError as error:
        user = reference.partition("/")[0]
        raise SourceError(f"no source at {reference!r}: this machine knows no home of {user!r}; write the whole path") from error
