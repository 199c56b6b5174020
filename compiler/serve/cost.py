"""The measured times of an artifact's batches on this machine: a file beside the artifact, and what lies between its points."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from ..artifact import MANIFEST, Artifact
from ..core import ArtifactError, allowed_cores, hash_file, processor, read_json, require, write_text

FORMAT = 2
Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Seconds = Annotated[float, msgspec.Meta(ge=1e-9, le=3600)]  # of a batch: what is longer than an hour was not measured
AGAIN = "delete it, and it is measured again when the artifact is served"


class CostFile(msgspec.Struct, forbid_unknown_fields=True):
    """What stands in ARTIFACT.cost.json. `seconds` [lengths][batches] of padded batches, or [1][tokens] of packed ones."""

    format: int
    manifest: str  # sha256 of the artifact's manifest.json
    machine: str
    workers: Count
    threads: Count
    packed: bool
    batches: list[Count]  # rows; tokens of a batch where packed
    lengths: list[Count]
    seconds: list[list[Seconds]]
    # Seconds of the server's own work for a row, which takes a core from the workers; null where it is not measured.
    per_row: Annotated[float, msgspec.Meta(ge=0, le=3600)] | None = None


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Seconds of a batch, linear between the measured sizes and in proportion to the tokens beyond them.

    `per_row`: the server's own work, by which a worker of a machine with no core to spare is kept longer; None: not measured.
    `sizes` int64 [n] ascending: rows (padded) or tokens (packed); `lengths` int64 [m] ascending; `table` float64 [m, n].
    """

    sizes: np.ndarray
    lengths: np.ndarray
    table: np.ndarray
    packed: bool = False
    per_row: float | None = None
    workers: int = 1
    threads: int = 1

    def seconds(self, rows: np.ndarray, longest: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Seconds [batches] of batches: int arrays [batches] of rows, longest row, and tokens without padding."""
        rows, longest, tokens = (np.asarray(each, np.float64) for each in (rows, longest, tokens))
        if self.packed:
            found = _along(self.sizes, self.table[0], tokens)
        else:
            found = _bilinear(self.lengths, self.sizes, self.table, longest, rows)
        return np.asarray(found + (self.per_row or 0.0) * rows)

    def one(self, lengths: list[int]) -> float:
        """Seconds of one batch of rows of these lengths."""
        rows, longest, tokens = (np.array([n]) for n in (len(lengths), max(lengths), sum(lengths)))
        return float(self.seconds(rows, longest, tokens)[0])


def _along(points: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear between the points; below the first its value, beyond the last in proportion."""
    inside = np.interp(at, points, values)
    return np.asarray(np.where(at > points[-1], values[-1] * at / points[-1], inside))


def _bilinear(lengths: np.ndarray, sizes: np.ndarray, table: np.ndarray, longest: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same in both directions."""
    over = np.maximum(longest / lengths[-1], 1.0) * np.maximum(rows / sizes[-1], 1.0)
    i, down = _cell(lengths, longest)
    j, right = _cell(sizes, rows)
    under, behind = np.minimum(i + 1, len(lengths) - 1), np.minimum(j + 1, len(sizes) - 1)
    short = (1 - right) * table[i, j] + right * table[i, behind]
    long = (1 - right) * table[under, j] + right * table[under, behind]
    return np.asarray(((1 - down) * short + down * long) * over)


def _cell(points: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the point at or before each value, the share of the way to the next one)."""
    low = np.minimum(np.maximum(np.searchsorted(points, at, side="right") - 1, 0), max(len(points) - 2, 0))
    before, after = points[low], points[np.minimum(low + 1, len(points) - 1)]
    share = (at - before) / np.maximum(after - before, 1)
    return low, np.minimum(np.maximum(share, 0.0), 1.0)  # np.clip takes three times as long for a few numbers


def cost_path(artifact: Path) -> Path:
    """The file beside an artifact: `out/minilm` -> `out/minilm.cost.json`. The artifact itself holds what was built alone."""
    artifact = Path(os.path.abspath(artifact))
    return artifact.with_name(artifact.name + ".cost.json")


def machine_name() -> str:
    """The processor, and how many cores this process may use: times measured on another are not read."""
    return f"{processor()}, {len(allowed_cores())} cores"


def write_cost(found: Artifact, model: CostModel) -> Path:
    """Write the times beside the artifact; returns the path."""
    path = cost_path(found.path)
    made = CostFile(
        FORMAT,
        hash_file(found.path / MANIFEST),
        machine_name(),
        model.workers,
        model.threads,
        model.packed,
        model.sizes.tolist(),
        model.lengths.tolist(),
        model.table.tolist(),
        model.per_row,
    )
    write_text(path, msgspec.json.format(msgspec.json.encode(made)).decode() + "\n", "the cost file")
    return path


def read_cost(found: Artifact) -> tuple[CostModel | None, str]:
    """(the times beside an artifact, ''), or (None, why there are none that hold here). ArtifactError for a file that is none."""
    path = cost_path(found.path)
    if not path.is_file():
        return None, f"no times at {path.name}"
    plain = read_json(path, advice=AGAIN, error=ArtifactError)
    read: CostFile = require(plain, CostFile, where=str(path), advice=AGAIN, error=ArtifactError)
    if read.format != FORMAT:
        return None, f"{path.name} was measured by another version of bertc"
    if read.manifest != hash_file(found.path / MANIFEST):
        return None, f"{path.name} was measured for another build of the artifact"
    if read.machine != machine_name():
        return None, f"{path.name} was measured on another machine ({read.machine})"
    return _model(read, path), ""


def _model(read: CostFile, path: Path) -> CostModel:
    sizes, lengths = np.asarray(read.batches, np.int64), np.asarray(read.lengths, np.int64)
    wrong = _what_is_wrong(read, sizes, lengths)
    if wrong:
        raise ArtifactError(f"{path}: {wrong}; {AGAIN}")
    table = np.asarray(read.seconds, np.float64)
    return CostModel(sizes, lengths, table, read.packed, read.per_row, read.workers, read.threads)


def _what_is_wrong(read: CostFile, sizes: np.ndarray, lengths: np.ndarray) -> str:
    for name, axis in (("batches", sizes), ("lengths", lengths)):
        if not len(axis) or np.any(np.diff(axis) <= 0):
            return f"{name} are not whole numbers from 1 on, ascending"
    if read.packed and len(lengths) > 1:
        return "packed times have one line of seconds, and lengths are [1]"
    if len(read.seconds) != len(lengths) or any(len(line) != len(sizes) for line in read.seconds):
        return f"seconds are not {len(lengths)} x {len(sizes)} numbers"
    return ""
