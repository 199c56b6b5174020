"""bertc compiles distilled PyTorch encoders to ONNX Runtime and TensorRT engines, and proves them equal to the source.

    import bertc
    bertc.build("minilm", "out/minilm", precision="fp16", targets=["tensorrt-rtx:sm89"])
    verdicts = bertc.verify("out/minilm", data="texts.txt", against="minilm")
    runner = bertc.load("out/minilm-cpu")
    runner.run(runner.encode(["two words"]))

Importing this package imports no torch, onnxruntime or TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import VERSION as __version__
from .core import InputError

if TYPE_CHECKING:
    from .artifact import Artifact
    from .runtime import Runner
    from .serve import ArtifactModule, Classifier
    from .source import FactoryModel
    from .verification import Verdict

__all__ = ["FactoryModel", "__version__", "build", "classifier", "export", "load", "sentence_transformers", "verify"]

Name = str | PathLike[str]


def export(source: Name, out: Name, *, force: bool = False, **options: Any) -> Artifact:
    """Export a source to a checked float32 graph with goldens. `options` are the fields of `bertc.recipe.Recipe`.

    Raises a `bertc.errors.BertcError`; `out` is then as it was before.
    """
    from . import pipeline

    return pipeline.export(_recipe(source, options), Path(out), force=force)


def build(source: Name, out: Name, *, force: bool = False, **options: Any) -> tuple[Artifact, ...]:
    """Build a source or a recipe for `targets` (a list of NAME[:SM,...][=PRECISION]) in `precision`, verified.

    Returns one Artifact a target. `options` are the fields of `bertc.recipe.Recipe`; raises a `bertc.errors.BertcError`.
    """
    from . import pipeline

    return pipeline.build_recipe(_recipe(source, options), Path(out), force=force)


def verify(
    artifact: Name,
    *,
    data: Name | None = None,
    against: str | None = None,
    teacher: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    adapter: str | None = None,
    allow_changed_source: bool = False,
    require_engine: bool = False,
    budget: Mapping[str, float] | None = None,
) -> Sequence[Verdict]:
    """Compare an artifact, or each artifact below a folder, with its source; look at `.passed` and `.engine_executed`.

    Without `data` the goldens in the artifact are the source's outputs; `data` is answered by the source, `against`. The
    options behind it say how it may be opened, `allow_changed_source` that its sha256 need not be the manifest's.
    `teacher` stands in place of `against`: what the artifact's source was distilled from, judged by the limits in `budget` alone.
    With labels in `data`, `.result.metrics` are the task's metrics; `budget={"max_drop": 0.005}` judges the first.
    """
    from .recipe import given_source
    from .verification import verify as run

    path = Path(data) if data else None
    given = None
    if against is not None and teacher is not None:
        raise InputError("teacher stands in place of against: give one of them")
    if against is not None or teacher is not None:
        given = given_source(
            str(against or teacher),
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            changed=allow_changed_source,
            teacher=teacher is not None,
        )
    return run(Path(artifact), data_path=path, against=given, require_engine=require_engine, budget=budget)


def load(artifact: Name) -> Runner:
    """The runner of an artifact: `.run(feeds) -> outputs` (dicts of numpy arrays), `.io`, `.encode(texts)`.

    Hashes are checked first. Raises `bertc.errors.Missing` where this machine cannot run the engine.
    """
    from .verification import load_runner as run

    return run(Path(artifact))


def sentence_transformers(artifact: Name) -> ArtifactModule:
    """An artifact as a module: `SentenceTransformer(modules=[bertc.sentence_transformers(path)])`.

    Prompts, similarity and dimension of the model's folder hold where the constructor is given none. Raises
    `bertc.errors.Missing` without the package, `bertc.errors.DataError` for an artifact without a sentence_embedding.
    """
    try:
        from .serve import ArtifactModule as Module
    except ImportError as error:
        from .core import Missing

        raise Missing(f"this needs {error.name}: pip install sentence-transformers") from error
    return Module(fspath(artifact))


def classifier(artifact: Name) -> Classifier:
    """A classifier as transformers' text-classification pipeline is called: `classifier("a text") -> [{"label", "score"}]`."""
    from .serve import Classifier as Callable

    return Callable(Path(artifact))


def _recipe(source: Name, options: dict[str, Any]) -> Any:
    import dataclasses

    from . import recipe

    paths = {name: fspath(value) for name, value in options.items() if isinstance(value, PathLike)}  # a recipe is plain text
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (options | paths).items()}
    known = {f.name for f in dataclasses.fields(recipe.Recipe)}
    for name in given:
        if name not in known:
            from .core import RecipeError, did_you_mean

            raise RecipeError(f"unknown option {name!r}{did_you_mean(name, known)}")
    return dataclasses.replace(recipe.resolve(str(source))[0], **given)


def __getattr__(name: str) -> Any:
    if name == "FactoryModel":
        from .source import FactoryModel

        return FactoryModel
    if name == "errors":
        from .core import errors

        return errors
    raise AttributeError(f"module 'bertc' has no attribute {name!r}")
