"""Files of weights, checked before a byte of a tensor is read: which there are, their headers, and how much is in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..core import SourceError, counted, parse_json, require
from .model_json import ShardIndex, Tensor, read_json

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
MAX_HEADER = 25 * 2**20  # the format allows 100 MB, which are gigabytes in Python; a hundred thousand tensors take 15 MiB
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64},
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F4": 4},
    **{"F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}


def find_weights(folder: Path, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files of a folder: one safetensors file, its shards, or a pickle where that is allowed. All checked."""
    if (folder / SAFETENSORS).is_file():
        return _checked([folder / SAFETENSORS])
    if (folder / f"{SAFETENSORS}.index.json").is_file():
        return _checked(_shards(folder / f"{SAFETENSORS}.index.json"))
    pickles = [f for f in (folder / PICKLE, folder / f"{PICKLE}.index.json") if f.is_file()]
    if pickles and not allow_pickle:
        raise SourceError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), which can run any code when it is read; convert "
            "it (model.save_pretrained(folder) writes safetensors), or pass --allow-pickle if you trust it"
        )
    if pickles:
        return tuple(_shards(pickles[0])) if pickles[0].suffix == ".json" else (pickles[0],)
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise SourceError(f"{folder} has no {SAFETENSORS}; it holds {', '.join(found[:12]) or 'nothing'}; is the download complete?")


def _shards(index: Path) -> list[Path]:
    mapping = read_json(index, "the index of the weight shards", ShardIndex).get("weight_map")
    if not mapping:
        raise SourceError(f"{index} has no weight_map; is the download complete?")
    names = sorted(set(mapping.values()))
    for name in names:
        if PurePosixPath(name).name != name:
            raise SourceError(f"{index} points to {name!r}, outside its own folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise SourceError(
            f"{index} needs {counted(len(names), 'shard')}, missing: {', '.join(missing[:3])}; is the download complete?"
        )
    return [index.parent / name for name in names]


def _checked(files: Sequence[Path]) -> tuple[Path, ...]:
    for file in files:
        safetensors_header(file)
    return tuple(files)


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, {tensor: {dtype, shape, data_offsets}}.

    Raises SourceError for a file that is truncated or damaged, a header that is too long for it or at all, a type that the
    format does not have, and a tensor that lies outside the file or is not as long there as its shape says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise SourceError(f"{path} is truncated or no safetensors file: {size} bytes, header of {length}")
        if length > MAX_HEADER:
            raise SourceError(f"{path} has a safetensors header of {length} bytes; bertc reads up to {MAX_HEADER}")
        raw = file.read(length)
    where, advice = f"the safetensors header of {path}", "is the download complete?"
    header = parse_json(raw, dict[str, Any], where=where, advice=advice, error=SourceError)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    require(tensors, dict[str, Tensor], where=where, advice=advice, error=SourceError)
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if 8 + length + end != size:
        raise SourceError(f"{path} should have {8 + length + end} bytes by its header, it has {size}; is the download complete?")
    for name, entry in tensors.items():
        _check_length(path, name, entry)
    return tensors


def _check_length(path: Path, name: str, entry: Tensor) -> None:
    if entry["dtype"] not in BITS:
        raise SourceError(f"{path}: {name!r:.200} is of type {entry['dtype']!r:.40}; known: {', '.join(BITS)}")
    (start, end), bits = entry["data_offsets"], math.prod(entry["shape"]) * BITS[entry["dtype"]]
    if (end - start) * 8 != bits:
        raise SourceError(
            f"{path}: {name!r:.200} of {entry['dtype']} {entry['shape']!r:.100} takes {-(-bits // 8)} bytes, its header gives it "
            f"{end - start}; is the download complete?"
        )


def elements(files: Sequence[Path]) -> int:
    """How many numbers are in files of weights; of pickles, which nobody reads for this, at most: one for each byte."""
    return sum(
        sum(math.prod(entry["shape"]) for entry in safetensors_header(file).values())
        if file.suffix == ".safetensors"
        else file.stat().st_size
        for file in files
    )


def tensor_count(files: Sequence[Path]) -> int | None:
    """How many tensors are in files of weights, None where they are pickles."""
    if any(file.suffix != ".safetensors" for file in files):
        return None
    return sum(len(safetensors_header(file)) for file in files)


def longest(files: Sequence[Path]) -> int:
    """The largest size of any tensor in files of weights; 0 of pickles."""
    headers = (safetensors_header(file) for file in files if file.suffix == ".safetensors")
    return max((size for header in headers for entry in header.values() for size in entry["shape"]), default=0)


def dtype_notes(weights: Sequence[Path]) -> Iterator[str]:
    """What is said of weights that are saved in half the bits."""
    files = [file for file in weights if file.suffix == ".safetensors"]
    dtypes = {str(entry["dtype"]) for file in files for entry in safetensors_header(file).values()}
    half = sorted(dtypes & {"F16", "BF16"})
    if half:
        yield f"weights saved as {' and '.join(half)} are read as float32"
