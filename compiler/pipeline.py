"""The stages of a build in order. Read this first.

    source -> check the export -> fuse -> (lower -> precision -> compile -> verify) for each target -> artifact

Every stage is a function from the file named after it; the graph is valid and checked between stages. Nothing appears at
the output until everything succeeded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import artifact, data, goldens, page, precision, profiles, quant, report, targets, verification
    known = dataclasses.replace(watch, stages=log.stages | watch.stages, notes=[*log.notes, *watch.notes])
    before = {"source": job.source.graph, "fused": job.fused.graph if job.fused and target.FUSES else None}
    hashes |= page.write(directory, report.document(facts, before, job.proof, verdict, known, report.Size.of(directory)))
    artifact.write_manifest(directory, facts, hashes)


def quantise(build: Build, job: Job, graph: Graph, watch: Progress) -> Quantised:
    """Q/DQ pairs where the data and the budget allow them. Raises what `quant.quantise` raises."""
    target = targets.get(build.spec.name)
    data_path, limit, bits = Path(str(job.recipe.data)), job.recipe.budget.get("max_drop"), quant.weight_bits(build.spec.name)
    request = quant.Request(data_path, limit, job.ranges, target.INT8_ATTENTION, bits)
    with watch.stage(f"{build.name}: quantise") as advance:
        made = quant.quantise(graph, job.source, request, advance)
    for note in made.notes:
        watch.note(note)
    return made


def type_graph(build: Build, job: Job, graph: Graph) -> Typed:
    """The types of a lowered graph, by its precision mode; what is not int8 in an int8 build is of the target's choice."""
    mode = precision.get(build.precision)
    return mode.apply(graph, evidence(job), **({"base": targets.get(build.spec.name).INT8_BASE} if build.quantised else {}))


def evidence(job: Job) -> Evidence:
    """What values are measured on: the goldens, and where these are data, synthetic samples of every kind of mask beside them."""
    samples, recipe, source = job.proof.samples, job.recipe, job.source
    if source.run is None:
        return Evidence(samples, f"the {len(samples)} goldens of the export")
    if recipe.goldens == "synthetic":
        return Evidence(samples, f"{len(samples)} synthetic samples")
    made = data.synthetic(source.graph, source.dims, recipe.seed)
    rows = sum(max(1, len(sample.origins)) for sample in samples)
    name = f"{rows} rows of {Path(str(recipe.data)).name} and {len(made)} synthetic samples"
    return Evidence((*samples, *made), name)


def check_artifact(
    build: Build,
    job: Job,
    directory: Path,
    facts: Mapping[str, Any],
    typed: Typed,
    watch: Progress,
    quantised: Quantised | None = None,
) -> verification.Verdict | None:
    """Verify an artifact on its goldens before it is written, and an int8 one on the data it was not calibrated with.

    None where the recipe says not to.

    Raises VerifyFailed when it is over its budget, or when the budget asks for more than the goldens can show.
    """
    if not job.recipe.verify:
        watch.note(f"{build.name} was not verified (--no-verify)")
        return None
    with watch.stage(f"{build.name}: verify") as advance:
        synthetic = job.recipe.goldens == "synthetic"
        truths = [verification.Truth(job.proof.samples, job.proof.outputs, "goldens", synthetic=synthetic)]
        truths += [quantised.truth()] if quantised else []
        verdicts = [verification.judge(directory, facts, typed.graph, truth, advance) for truth in truths]
    for verdict in verdicts:
        watch.say(f"{verdict.summary()} on {verdict.data}" if quantised else verdict.summary())
        if not verdict.passed:
            why = f"on {verdict.data}: {verdict.reasons()}"
            raise VerifyFailed(f"{build.name} is {verdict.shortfall()}, nothing was written: {why}")
    return verdicts[-1]


def manifest(build: Build, job: Job, typed: Typed, built: Built) -> dict[str, Any]:
    """What manifest.json says, but for the files: nothing in it depends on the time or the place of the build.

    (The files' hashes do in one entry: report.json holds the times of the stages.)
    """
    from . import __version__

    graph, source, recipe = typed.graph, job.source, job.recipe
    return {
        "bertc": __version__,
        "source": {
            "reference": source.reference,
            "kind": source.kind,
            "sha256": source.sha256,
            "task": source.task,
            "revision": source.revision,
            "options": dataclasses.asdict(source.options),
            "notes": list(source.notes),
        },
        "recipe": recipe.to_json(),
        "target": {"name": build.spec.name, "sms": list(build.spec.sms)},
        "precision": typed.plan.to_json(),
        "passes": job.fused.change.to_json() if job.fused and targets.get(build.spec.name).FUSES else None,
        "graph": {"opset": graph.opset, "ops": graph.op_counts(), "initializer_bytes": graph.initializer_bytes},
        "engine": dict(built.facts),
        "inputs": [spec.to_json() for spec in graph.inputs],
        "outputs": [spec.to_json() for spec in graph.outputs],
        "dims": {name: {"min": dim.min, "max": dim.max} for name, dim in source.dims.items()},
        "profiles": profiles.to_json(job.ranges),
        "seed": recipe.seed,
        "budget": dataclasses.asdict(verification.budget_for(build.precision, recipe.budget)),
        "tools": dict(source.versions) | report.versions(),
    }


def export(recipe: Recipe, out: Path, *, force: bool = False, progress: Progress | None = None) -> Artifact:
    """Only the first stages: the source as a float32 graph with goldens, to build from later without PyTorch."""
    only = dataclasses.replace(recipe, targets=("null",), precision="fp32", fuse=True, expect=None)
    return compile(only, out, force=force, progress=progress)[0]
