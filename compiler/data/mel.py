"""Recordings as the frames of a model that takes no raw samples: the feature extractor of transformers that the model names.

Windows, filters, a floor, a norm and padding differ from class to class, and the class itself is the only truth about them.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import ArtifactError, DataError, Missing, TensorSpec, first_line, scratch


def mel_feeds(
    waves: Sequence[np.ndarray], kind: str, files: Mapping[str, Path], rate: int, inputs: Sequence[TensorSpec]
) -> dict[str, np.ndarray]:
    """Waveforms as the inputs of a model, padded as the class `kind` pads by itself.

    Raises Missing where transformers is not installed, ArtifactError where it cannot load the class from `files`, DataError for
    recordings that it refuses and for a model whose inputs it does not make.
    """
    extractor = _extractor(kind, tuple(sorted(files.items())))
    try:
        found = extractor(list(waves), sampling_rate=rate, return_tensors="np")
    except (
        Exception
    ) as error:  # whatever the class raises: a recording shorter than its window, a package of its own that is missing
        raise DataError(f"{kind} of transformers refuses the recordings: {first_line(error)}") from error
    made = {name: np.asarray(array) for name, array in found.items()}
    lacking = [str(spec) for spec in inputs if spec.name not in made]
    if lacking:
        raise DataError(
            f"{kind} makes {', '.join(made)} of recordings, and the model takes {', '.join(lacking)}: give raw feeds as .npz"
        )
    return {spec.name: made[spec.name].astype(spec.dtype) for spec in inputs}


@functools.lru_cache(maxsize=4)
def _extractor(kind: str, files: tuple[tuple[str, Path], ...]) -> Any:
    try:
        from transformers import AutoFeatureExtractor
    except ImportError as error:
        raise Missing(
            f"{kind} of transformers makes the inputs of this model from recordings, and transformers is not there ({error}); "
            "pip install 'bertc[export]', or give the model's inputs as .npz"
        ) from error
    auto: Any = AutoFeatureExtractor
    with scratch() as folder:
        # A copy of these files alone: whatever else lies beside them is not looked at.
        for name, path in files:
            shutil.copyfile(path, folder / name)
        try:
            # trust_remote_code is said: else transformers asks on the terminal, and a "y" in a pipe runs the code.
            return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises anything from KeyError to ImportError
            raise ArtifactError(
                f"transformers cannot load the {kind} of {', '.join(name for name, _ in files)}: {first_line(error)}; give the "
                "model's inputs as .npz"
            ) from error
