"""Goldens: feeds and the source's outputs in one .npz, so that an artifact can be verified where its source is not."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import ArtifactError, DataError, Outputs, hash_file
from ..data import Sample, read_npz

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can say: equal goldens are equal bytes


def save_goldens(path: Path, samples: Sequence[Sample], outputs: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Write samples and their outputs; returns the sha256 of the file.

    Keys: "<n>/in/<name>", "<n>/out/<name>", "<n>/label" (a string), "<n>/dead" (int64 row numbers). Origins and gold labels are
    not kept. The bytes depend on the contents alone. Raises DataError for no samples, or a type that .npz cannot hold.
    """
    if not samples or len(samples) != len(outputs):
        raise DataError(
            f"goldens need outputs for each sample, one or more; got {len(outputs)} outputs for {len(samples)} samples"
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for at, (sample, output) in enumerate(zip(samples, outputs, strict=True)):
            if not sample.feeds or not output:
                raise DataError(f"goldens: sample {sample.label!r} has no inputs or no outputs")
            arrays = {f"in/{name}": array for name, array in sample.feeds.items()}
            arrays |= {f"out/{name}": array for name, array in output.items()}
            arrays |= {"label": np.array(sample.label), "dead": np.array(sample.dead_rows, np.int64)}
            for name in sorted(arrays):
                _write(archive, f"{at}/{name}", arrays[name])
    return hash_file(path)


def _write(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biufcU":
        raise DataError(f"goldens cannot hold {key!r} of dtype {array.dtype}; cast it to float32 first")
    entry = zipfile.ZipInfo(f"{key}.npy", EPOCH)
    entry.create_system = 3  # else it differs between operating systems
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def load_goldens(path: Path) -> tuple[tuple[Sample, ...], tuple[Outputs, ...]]:
    """Read what `save_goldens` wrote. Raises ArtifactError for a missing, damaged, incomplete or empty file, and for one that
    `save_goldens` cannot have written: compressed, with Python objects, with arrays that are none of a sample's."""
    advice = "build or copy the artifact again"
    if not path.is_file():
        raise ArtifactError(f"no goldens at {path}; {advice}")
    try:
        arrays = read_npz(path, stored=True)
    except DataError as error:
        raise ArtifactError(f"{path} is damaged ({error.__cause__}); {advice}") from error
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        number, _, rest = key.partition("/")
        groups.setdefault(number, {})[rest] = array
    if not groups or sorted(groups) != sorted(map(str, range(len(groups)))):
        raise ArtifactError(f"{path} lacks samples (found {', '.join(sorted(groups)) or 'none'}); {advice}")
    read = [_sample(groups[str(at)], f"{path}, sample {at}", advice) for at in range(len(groups))]
    return tuple(sample for sample, _ in read), tuple(outputs for _, outputs in read)


def _sample(arrays: Mapping[str, np.ndarray], what: str, advice: str) -> tuple[Sample, Outputs]:
    feeds: dict[str, Any] = {name[3:]: array for name, array in arrays.items() if name.startswith("in/")}
    outputs: Outputs = {name[4:]: array for name, array in arrays.items() if name.startswith("out/")}
    if not feeds or not outputs or "label" not in arrays or "dead" not in arrays:
        raise ArtifactError(f"{what} is incomplete (it has {', '.join(sorted(arrays))}); {advice}")
    strange = [name for name in sorted(arrays) if not name.startswith(("in/", "out/")) and name not in ("label", "dead")]
    label, dead = arrays["label"], arrays["dead"]
    strange += ["label"] * (label.ndim != 0) + ["dead"] * (dead.dtype.kind not in "iu" or dead.ndim > 1)
    if strange:
        raise ArtifactError(f"{what} has {strange[0]!r}, which is not as bertc writes it; {advice}")
    return Sample(str(arrays["label"]), feeds, tuple(int(row) for row in np.atleast_1d(arrays["dead"]))), outputs
