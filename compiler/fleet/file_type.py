"""fleet.toml as a type of msgspec, for editors (`bertc schema fleet`); config.py reads it, and says what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .. import precision as precisions
from .. import recipe as recipes
from ..core import gpu_models
from .config import LABEL, MOST_SHARDS, NAME, SIZE
from .keys import EXPORT_FIELDS, FUSE_FIELDS

Keys = list[tuple[str, Any]]


def fleet_type() -> Any:
    """The type, made of the fields of a recipe, the precisions and the GPU models that there are."""
    match: Keys = [
        ("model", _told(str, "The name of a model.")),
        ("gpu", _told(Literal[gpu_models.names()], "The GPU model.")),
        ("target", _told(str, "The target.")),
        ("precision", _told(_precision(), "The precision.")),
    ]
    taken = {"targets", "precision"}  # the fleet says them
    of_model = [key for key in recipes.file_keys() if key[0] not in taken]
    overridden = [key for key in of_model if key[0] not in {*EXPORT_FIELDS, *FUSE_FIELDS}]
    size: Any = Annotated[str, Meta(pattern=f"^\\s*{_plain(SIZE.pattern)}\\s*$", description="What a build needs, as in 8 GB.")]
    cores: Any = Annotated[int, Meta(ge=1, description="Cores that a build gets.")]
    rule: Any = _table("Rule", match)
    model: Any = _table("Model", [("recipe", _told(str, "A recipe's name or file, or any source.")), *of_model])
    override: Any = _table("Override", [*match, ("memory", size), ("cores", cores), *overridden])
    label: Any = Annotated[str, Meta(pattern=f"^{LABEL.pattern}$")]
    name: Any = Annotated[str, Meta(pattern=f"^{NAME.pattern}$")]
    precision: Any = _precision()
    models: Any = dict[name, model] | list[str]
    runner: Any = Literal[("any", *gpu_models.names())]
    folder: Any = Annotated[str, Meta(min_length=1)]
    return _table(
        "Fleet",
        [
            ("out", _told(folder, "Where artifacts go: OUT/MODEL/PLAN-OR-GPU-PRECISION/.")),
            ("store", _told(folder, "Finished stages; a folder that many machines may share.")),
            ("models", _told(models, "[models.NAME] with recipe = ... and fields of a recipe; or names.")),
            ("gpus", _told(list[str], "GPU models: NAME, or NAME/TARGET.")),
            ("targets", _told(list[str], "What needs no GPU model: TARGET[:SM,...][=PRECISION].")),
            ("precisions", _told(list[precision], "Precisions of targets that fix none.")),
            ("per_sm", _told(bool, "A TensorRT-RTX plan for each SM, not one for sm86, 89, 120 and 121.")),
            ("shards", Annotated[int, Meta(ge=1, le=MOST_SHARDS, description="Calibration is split in so many tasks.")]),
            ("exclude", _told(list[rule], "Leaves out what has all of these.")),
            ("include", _told(list[rule], "Adds; every model unless one is named.")),
            ("override", _told(list[override], "Fields of a recipe, memory and cores for what has these.")),
            ("runners", _told(dict[runner, label | list[label]], "Labels of CI runners: by GPU model, and `any`.")),
        ],
    )


def _precision() -> Any:
    return Literal[precisions.names()]


def _told(kind: Any, description: str) -> Any:
    return Annotated[kind, Meta(description=description)]


def _table(name: str, keys: Keys) -> Any:
    """A table that may have these keys and no others."""
    fields: Any = [(key, kind | UnsetType, UNSET) for key, kind in keys]
    return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)


def _plain(pattern: str) -> str:
    """Letters of either case, written out: JSON Schema has no flags."""
    return pattern.replace("[KMGT]", "[KMGTkmgt]").replace("(i?)B", "[iI]?[bB]")
