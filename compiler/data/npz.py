"""Arrays from a .npz that somebody else may have written: sizes are believed when the file has the bytes, and nothing is run.

A header may claim any shape, and a few compressed bytes may stand for many GiB. So each header is read first, and an array is
made only when its shape and type need exactly the bytes that the member holds, and all of them fit into memory.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..core import DataError, available_bytes, first_line

KINDS = {zipfile.ZIP_STORED: "as it is", zipfile.ZIP_DEFLATED: "compressed (deflate)"}  # what numpy writes
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
SUFFIX = ".npy"


def read_npz(path: Path, stored: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name. `stored`: compressed members are refused, so that no array is larger than its file.

    Raises DataError for a damaged file, for Python objects (pickles), a size that the file does not have, a name that is there
    twice, and for more than the memory that is free.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members, stored)
            return {member.filename.removesuffix(SUFFIX): _array(archive, member) for member in members}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz of plain arrays ({error}); write it with numpy.savez") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo], stored: bool) -> None:
    """Raises ValueError for what the list of contents alone shows to be wrong."""
    names: set[str] = set()
    for member in members:
        name = member.filename
        if not name.endswith(SUFFIX):
            raise ValueError(f"it holds {name!r}, which is no {SUFFIX} array")
        if name in names:
            raise ValueError(f"it holds {name!r} twice")
        if member.compress_type not in KINDS or (stored and member.compress_type != zipfile.ZIP_STORED):
            found = KINDS.get(member.compress_type, f"compressed by method {member.compress_type}")
            raise ValueError(f"{name!r} is {found}; {'it must not be compressed' if stored else 'numpy writes no such file'}")
        names.add(name)
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise ValueError("its members are larger together than the file: they overlap")
    total, free = sum(member.file_size for member in members), available_bytes()
    if free is not None and total > free:
        raise ValueError(f"its arrays need {total / 2**30:.1f} GiB, this machine has {free / 2**30:.1f} GiB of memory free")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        _check_header(file, member)
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end: only there the checksum is compared
    return np.asarray(array)


def _check_header(file: Any, member: zipfile.ZipInfo) -> None:
    """Raises ValueError unless a header says numbers or texts that take exactly the bytes behind it."""
    name = member.filename
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"format version {version} is for arrays with named fields")
        shape, _, dtype = HEADERS[version](file)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError, tokenize.TokenError) as error:
        first = first_line(error)
        raise ValueError(f"{name!r} has no header of an array: {first:.200}") from error
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects (a pickle), which can run any code when it is read")
    if dtype.names is not None or dtype.itemsize == 0:
        raise ValueError(f"{name!r} is of type {dtype!s:.80}, not of plain numbers or texts")
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"{name!r} has the shape {list(shape)}, which no array has")
    needed, found = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if needed != found:
        raise ValueError(f"{name!r} says {dtype} {list(shape)}, which takes {needed} bytes; it holds {found}")
