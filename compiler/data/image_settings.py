"""Settings of a preprocessor of images or videos, told apart from those of recordings: they share the names of their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .text_settings import read_config

NESTED = ("image_processor", "video_processor")
CLASSES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
# What only the preparation of an image has. None of recordings has a size in pixels.
OF_IMAGES = frozenset(
    {"image_processor_type", "video_processor_type", "image_mean", "image_std", "crop_size", "do_resize", "do_center_crop"}
    | {"do_rescale", "size", "image_size"}
)


def prepares_images(config: Mapping[str, Any]) -> str:
    """The class that prepares images by these settings, "images" where they name none; "" for settings of something else."""
    for part in (config, *(config[name] for name in NESTED if isinstance(config.get(name), Mapping))):
        if "sampling_rate" not in part and OF_IMAGES & part.keys():
            return next((str(part[name]) for name in CLASSES if part.get(name)), "images")
    return ""


def image_files(files: Mapping[str, Path], of_recordings: Path | None) -> dict[str, str]:
    """{file: the class} of the preprocessors of images among `files`, but for the file that is one of recordings as well."""
    classes = {name: prepares_images(read_config(path)) for name, path in files.items() if path != of_recordings}
    return {name: found for name, found in classes.items() if found}
