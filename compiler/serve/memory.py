"""Many models in one memory: weights by their content, each in one file that all sessions and workers map; and what is loaded
under a budget, the least recently used unloaded first.

ONNX Runtime's Python interface has no container of packed weights that sessions could share, but it can write packed weights
beside a graph and map them. A file of its own for each weight, called by its hash, makes equal weights one file, and the system
holds a file that is mapped many times once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from ..core import InputError, output_errors

if TYPE_CHECKING:
    import onnx

PAGE = 4096  # what is mapped begins at a page
PREFIX, LOCK = "bertc-serve-", "lock"
FRESH = 60.0  # seconds in which a folder without a lock may be one whose server is about to lock it
PACKED = "prepacked_"  # keys of ONNX Runtime in a tensor's external_data: "KEY|offset;bytes;checksum|..."
IN_MEMORY = ("tmpfs", "ramfs")


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes of a data file: a weight, or what a kernel packed of it."""

    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight as kernels want it: ONNX Runtime's key, and its blocks, each with its checksum."""

    key: str
    blocks: tuple[tuple[Part, str], ...]

    @staticmethod
    def read(text: str) -> Packed:
        """ValueError for a form that this does not know."""
        key, *blocks = text.split("|")
        if not key or not blocks:
            raise ValueError(f"packed weights described as {text!r:.80}")
        cut = [block.split(";") for block in blocks]
        return Packed(key, tuple((Part(int(offset), int(size)), check) for offset, size, check in cut))

    def at(self, offsets: Sequence[int]) -> str:
        """The description with the blocks at these offsets."""
        moved = zip(offsets, self.blocks, strict=True)
        return "|".join([self.key, *(f"{offset};{part.size};{check}" for offset, (part, check) in moved)])


class Store:
    """A folder of weights by their hash, and of graphs that refer to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def graph(self, name: str) -> Path:
        """Where the graph of a model lies."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.onnx"

    def take(self, name: str, saved: Path) -> tuple[dict[str, int], str]:
        """Move the weights of a saved graph and its data file into the store.

        Returns ({hash: the bytes that a session touches}, a hash of the graph without the values of its weights). ValueError
        or KeyError where ONNX Runtime wrote what this does not know.
        """
        import onnx

        model = onnx.load(saved, load_external_data=False)
        needed: dict[str, int] = {}
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                digest, size = self._take_tensor(saved.parent, tensor)
                needed[digest] = size
        self.graph(name).write_bytes(model.SerializeToString())
        return needed, shape_of(model)

    def _take_tensor(self, folder: Path, tensor: onnx.TensorProto) -> tuple[str, int]:
        """One weight, with what was packed of it, to a file of its own; the tensor then refers to it."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        packed = {key: Packed.read(text) for key, text in entries.items() if key.startswith(PACKED)}
        parts = [Part(int(entries["offset"]), int(entries["length"]))]
        parts += [part for each in packed.values() for part, _ in each.blocks]
        named = "\n".join([str(tensor.data_type), str(list(tensor.dims)), *(each.key for each in packed.values())])
        digest = hashlib.sha256(named.encode())
        source = folder / entries["location"]
        for part in parts:
            for block in _read(source, part):
                digest.update(block)
        found = digest.hexdigest()
        offsets = self._write(source, parts, self.folder / found)
        _refer(tensor, {"location": found, "offset": str(offsets[0]), "length": str(parts[0].size)}, packed, offsets[1:])
        return found, sum(part.size for part in parts[1:]) or parts[0].size

    def _write(self, source: Path, parts: Sequence[Part], out: Path) -> list[int]:
        """Each part at a page of its own; nothing is written where the file is there already."""
        offsets, end = [], 0
        for part in parts:
            offsets.append(end)
            end += -(-part.size // PAGE) * PAGE
        if out.exists():
            return offsets
        half = out.with_name(f"{out.name}.half")
        with half.open("wb") as file:
            for offset, part in zip(offsets, parts, strict=True):
                file.seek(offset)
                file.writelines(_read(source, part))
            file.truncate(end)
        half.replace(out)  # a weight is there whole or not at all
        return offsets

    def remove(self, name: str, weights: Sequence[str]) -> None:
        """Forget a graph and its manifest, and weights that no other refers to."""
        for kind in (".onnx", ".json"):
            self.graph(name).with_suffix(kind).unlink(missing_ok=True)
        for each in weights:
            (self.folder / each).unlink(missing_ok=True)


def _read(path: Path, part: Part) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(part.offset)
        left = part.size
        while left:
            block = file.read(min(left, 2**22))
            if not block:
                raise ValueError(f"{path.name} ends before byte {part.offset + part.size}")
            left -= len(block)
            yield block


def _refer(tensor: onnx.TensorProto, entries: Mapping[str, str], packed: Mapping[str, Packed], offsets: Sequence[int]) -> None:
    left = list(offsets)
    described = dict(entries)
    for key, each in packed.items():
        described[key] = each.at([left.pop(0) for _ in each.blocks])
    del tensor.external_data[:]
    for key, value in described.items():
        tensor.external_data.add(key=key, value=value)


def shape_of(model: onnx.ModelProto) -> str:
    """The same for graphs that differ in the values and names of their weights alone: their batches take the same time."""
    digest = hashlib.sha256()
    numbers: dict[str, int] = {"": 0}
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.data_type} {list(tensor.dims)} {numbers.setdefault(tensor.name, len(numbers))}\n".encode())
    for node in model.graph.node:
        inner = [attribute.SerializeToString(deterministic=True) for attribute in node.attribute]
        places = [numbers.setdefault(name, len(numbers)) for name in (*node.input, *node.output)]
        digest.update(f"{node.domain} {node.op_type} {places} {len(node.input)}\n".encode() + b"".join(inner))
    return digest.hexdigest()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for a Store that vanishes with its server; those of servers that were killed are removed first."""
    _remove_left_over(Path(tempfile.gettempdir()))
    with output_errors(Path(tempfile.gettempdir())):
        made = Path(tempfile.mkdtemp(prefix=PREFIX))  # of this user alone
    try:
        with filelock.FileLock(made / LOCK):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_left_over(place: Path) -> None:
    for each in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, filelock.Timeout):  # another user's, in use, or removed by another server meanwhile
            if each.is_symlink() or each.stat().st_uid != os.getuid() or time.time() - each.stat().st_mtime < FRESH:
                continue
            with filelock.FileLock(each / LOCK, timeout=0):
                shutil.rmtree(each, ignore_errors=True)


def in_memory(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a folder lies in a file system that is itself memory: then unloading frees nothing."""
    try:
        lines = [line.split() for line in mounts.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return False  # no Linux
    over = [(len(line[1]), line[2]) for line in lines if len(line) > 2 and path.resolve().is_relative_to(line[1])]
    return max(over, default=(0, ""))[1] in IN_MEMORY


@dataclasses.dataclass(frozen=True)
class Need:
    """What a model takes: its weights by hash, once for all workers, and what each worker holds besides."""

    weights: Mapping[str, int] = dataclasses.field(default_factory=dict)
    private: int = 0


class Ledger:
    """What is loaded, the least recently used first. Equal weights count once; without a budget all of it fits."""

    def __init__(self, budget: int | None = None, workers: int = 1) -> None:
        self.budget, self.workers = budget, workers
        self.needs: dict[str, Need] = {}
        self.loaded: dict[str, None] = {}  # in the order of use

    def know(self, name: str, need: Need) -> None:
        """A model that will be used. InputError where it could never be loaded."""
        size = self._size([need])
        if self.budget is not None and size > self.budget:
            raise InputError(
                f"model {name!r} takes {shown(size)} in {self.workers} workers, more than the memory of {shown(self.budget)}: "
                f"give it --memory {-(-size // 10**6)}MB or more"
            )
        self.needs[name] = need

    def forget(self, name: str) -> list[str]:
        """A model that goes; returns the weights that no other has."""
        gone = self.needs.pop(name, Need())
        self.loaded.pop(name, None)
        kept = {each for need in self.needs.values() for each in need.weights}
        return [each for each in gone.weights if each not in kept]

    def use(self, name: str) -> list[str]:
        """A model is used now: it counts as loaded. Returns what must be unloaded for it, the least recently used first."""
        self.loaded.pop(name, None)
        self.loaded[name] = None
        gone: list[str] = []
        while self.budget is not None and self.bytes() > self.budget:
            oldest = next(iter(self.loaded))
            if oldest == name:
                break  # alone, and measured to fit
            del self.loaded[oldest]
            gone.append(oldest)
        return gone

    def bytes(self) -> int:
        """What the loaded models take."""
        return self._size([self.needs[name] for name in self.loaded])

    def size(self, name: str) -> int:
        """What a model takes by itself."""
        return self._size([self.needs[name]])

    def _size(self, needs: Sequence[Need]) -> int:
        weights = {digest: size for need in needs for digest, size in need.weights.items()}
        return sum(weights.values()) + self.workers * sum(need.private for need in needs)


def shown(size: int) -> str:
    """`95 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 10**10 else f"{size / 1e6:.0f} MB" if size >= 10**7 else f"{size / 1e6:.1f} MB"


def anonymous() -> int:
    """Bytes of this process that no file has; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")), 0)


def release() -> None:
    """Collect what is garbage, and give memory that was freed back to the system."""
    import gc

    gc.collect()
    trim()


def trim() -> None:
    """Give memory that was freed back to the system."""
    import ctypes

    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's
    if found is not None:
        found(0)
