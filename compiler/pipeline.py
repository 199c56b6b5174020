"""The stages of a build in order. Read this first.

    source -> check the export -> fuse -> (lower -> precision -> compile -> verify) for each target -> artifact

Every stage is a function from the file named after it; the graph is valid and checked between stages. Nothing appears at
the output until everything succeeded.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import packing, precision, targets
from .artifact import Artifact, goldens, read_in_place
from .artifact import manifest as artifact
from .core import VERSION, InputError, NotFused, Profile, Progress, VerifyFailed, machine, profiles, scratch
from .data import index_bounds, mask_kinds, preprocess
from .fusions import Fused
from .fusions import engine as fusing
from .graph import Graph, deduplicate_initializers, save_graph
from .precision import Evidence, Typed
from .recipe import Build, Recipe, check, choose_targets, plan_builds
from .report import document as report
from .report import page, tables
from .source import Source, describe_quantised, open_source
from .targets import BuildRequest, Built
from .verification import ExportCheck, InputsCheck, budget_for, check_export, check_fused, check_inputs, on_data
from .verification import verdict as verification

if TYPE_CHECKING:
    from . import quant
    from .quant.calibration import Observed


def build_recipe(recipe: Recipe, out: Path, *, force: bool = False, progress: Progress | None = None) -> tuple[Artifact, ...]:
    """Build every target of a recipe into `out`: the artifact itself, or one directory per target when there are several.

    Raises a BertcError with the exit code of its cause; `out` is then as it was before.
    """
    log = progress or Progress()
    check(recipe)
    recipe, chosen = choose_targets(recipe)
    if chosen:
        log.note(chosen)
    builds = plan_builds(recipe)
    with artifact.staging(out, force) as stage:
        with log.stage("export"):
            source = open_source(recipe.source, recipe.source_options, recipe.profiles)
        log.detail(f"source: {source.kind}, sha256 {source.sha256}; operators: {source.graph.op_counts()}")
        for note in source.notes:
            log.note(note)
        targets.require_takes(source.graph, [(build.spec, build.precision) for build in builds])
        ranges = choose_profiles(recipe, source)
        log.detail(f"profiles: {profiles.profiles_to_json(ranges)}")
        rows = require_data(recipe, source, ranges, builds)
        with log.stage("check export") as advance:
            kept = golden_data(recipe)
            proof = check_export(source, ranges, advance, seed=recipe.seed, golden_data=kept, has_data=bool(recipe.data))
        log.say(proof.summary())
        for note in proof.notes:
            log.note(note)
        inputs = check_inputs(source, log)
        fused = fuse_graph(recipe, source, builds, proof, log)
        packed = pack_graph(source, fused, proof, log, [b.spec for b in builds], recipe.plugins) if recipe.packed else None
        job = Job(recipe, source, ranges, proof, fused, packed, inputs=inputs, rows=rows)
        for build in builds:
            directory = stage if len(builds) == 1 else stage / build.name
            directory.mkdir(exist_ok=True)
            build_artifact(build, job, directory, log)
    with artifact.already_written(out):
        return read_in_place(out, lambda: tuple(artifact.open_artifact(path) for path in artifact.find_artifacts(out)))


def choose_profiles(recipe: Recipe, source: Source) -> tuple[Profile, ...]:
    """The recipe's optimisation profiles, or one with defaults from the model."""
    return tuple(profiles.parse_profile(text, source.dims) for text in recipe.profiles or ("",))


def golden_data(recipe: Recipe) -> Path | None:
    """The file whose samples become the goldens; None where they are synthetic."""
    return Path(str(recipe.data)) if recipe.goldens == "data" else None


def require_data(recipe: Recipe, source: Source, ranges: tuple[Profile, ...], builds: Sequence[Build]) -> on_data.Rows:
    """The rows of --data to verify on. Before any long work: DataError for data that the model cannot be fed.

    (A single bad row of data that calibrates is told where it is read.)
    """
    calibrated = [build.precision in precision.CALIBRATED for build in builds]
    if recipe.data and any(calibrated):
        on_data.require_judgeable(source)
        preprocess.require_readable(Path(recipe.data), source.graph.inputs, source.dims, source.assets, ranges)
    rows = rows_of_data(recipe, source, ranges)
    if not all(calibrated):
        rows()
    return rows


def rows_of_data(recipe: Recipe, source: Source, ranges: tuple[Profile, ...]) -> on_data.Rows:
    """The rows of --data to verify on; none where they are in the goldens, or where nothing is verified."""
    wanted = recipe.data and recipe.goldens == "synthetic" and recipe.verify
    return on_data.read_when_wanted(Path(str(recipe.data)) if wanted else None, source, ranges)


def fuse_graph(recipe: Recipe, source: Source, builds: Sequence[Build], proof: ExportCheck, log: Progress) -> Fused | None:
    """The source's graph with its fusions, checked as a whole against the source; None where no target wants it.

    Raises CheckFailed for fewer fusions than the contract `recipe.expect` asks for, or a fused graph that is not the model.
    """
    wanting = [build for build in builds if targets.get(build.spec.name).FUSES]
    if not recipe.fuse:
        log.note("no fusions (--no-fuse)")
        return None
    if not wanting and not recipe.expect:
        return None
    with log.stage("fuse"):
        tables = {f"{b.spec} {b.precision}": targets.lowerings(b.spec, quantised=b.quantised) for b in wanting}
        for build in wanting:  # int8 may be found impossible, or not worth it, and then the base is built
            if build.compared_with_base or (build.quantised and {"max_drop", "agreement"} & set(build.limits)):
                tables[f"{build.spec} without int8"] = targets.lowerings(build.spec)
        try:
            fused = fusing.fuse(
                source.graph, source.dims, prove=recipe.prove, seed=recipe.seed, lowerings=tables, samples=proof.samples
            )
        except NotFused as why:
            if recipe.expect:
                raise NotFused(f"{why}; --expect {recipe.expect} asks for fusions") from why
            log.note(f"no fusions: {why}")
            return None
        check_fused(fused, source, proof)
    counts = ", ".join(f"{count} {rule}" for rule, count in fused.change.counts().items())
    log.note(f"fused: {counts or 'nothing'}; {len(fused.change.refusals)} candidates not fused (bertc fuse --explain)")
    for note in fused.notes:
        log.note(note)
    if not recipe.prove:
        log.note("fusions not proven one by one (--no-prove): only the whole fused graph was compared with the source")
    if recipe.expect:
        fusing.expect_fusions(source.graph, fused.change, recipe.expect)
        log.say(f"expected fusions ({recipe.expect}): all found")
    return fused


def pack_graph(
    source: Source, fused: Fused | None, proof: ExportCheck, log: Progress, specs: Sequence[targets.TargetSpec],
    plugins: Sequence[str] = (),
) -> packing.Packing:  # fmt: skip
    """The fused graph without the padding of a batch. InputError where it has no such form.

    As each of `specs` lowers it, it is held against the padded one: a fleet packs in several stages and proves in the last.
    """
    if fused is None:
        raise InputError("--packed packs what was fused, and nothing was; build without it")
    with log.stage("pack"):
        packed = packing.pack(fused.graph)
        if not specs:
            return packed
        given: dict[str, Any] = {"plugins": plugins} if plugins else {}
        lowered = {spec.name: targets.get(spec.name).lower(packed.graph, spec.sms, **given) for spec in specs}
        found = packing.check_packed(packed, lowered, fused.graph, source.dims, proof.samples)
    log.note(packed.summary())
    log.say(found)
    return packed


@dataclasses.dataclass(frozen=True)
class Job:
    """What all builds of a recipe share: the source, the sizes to build for, and the proof that the export is the model."""

    recipe: Recipe
    source: Source
    ranges: tuple[Profile, ...]
    proof: ExportCheck
    fused: Fused | None = None
    packed: packing.Packing | None = None
    timing_cache: Path | None = None
    inputs: InputsCheck = dataclasses.field(default_factory=InputsCheck)
    rows: on_data.Rows = on_data.no_rows

    @property
    def goldens(self) -> verification.Truth:
        return on_data.goldens_truth(self.proof, synthetic=self.recipe.goldens == "synthetic")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A typed graph and what its compiler made of it, with the sha256 of each file written."""

    build: Build
    typed: Typed
    request: BuildRequest
    built: Built
    hashes: Mapping[str, str]


def build_artifact(build: Build, job: Job, directory: Path, log: Progress, quantised: quant.LowBitGraph | None = None) -> None:
    """One artifact: lower the graph, quantise it unless that is done, type, compile and verify it, and write it all down."""
    watch = dataclasses.replace(log, stages={}, notes=[])
    target = targets.get(build.spec.name)
    if build.quantised and quantised is None:
        quantised = quantise_graph(build, job, lower_graph(build, job), watch)
    if quantised and quantised.precision in precision.QUANTISED:
        build, graph = dataclasses.replace(build, precision=quantised.precision), quantised.graph
    else:
        build = in_base_precision(build) if quantised else build
        graph = lower_graph(build, job)  # again where int8 came to nothing: what is best with Q/DQ pairs is not without
    compiled = compile_graph(build, job, graph, directory, watch)
    if quantised and build.compared_with_base:
        compiled, quantised = keep_better_engine(compiled, quantised, job, directory, watch)
    for note in (*compiled.typed.plan.summary(), *compiled.built.notes):
        watch.note(note)
    hashes = dict(compiled.hashes)
    hashes[artifact.GOLDENS] = goldens.save_goldens(directory / artifact.GOLDENS, job.proof.samples, job.proof.outputs)
    artifact.copy_assets(job.source.assets, directory)
    facts = manifest_facts(compiled.build, job, compiled.typed, compiled.built, quantised)
    rows = quantised.truth if quantised and compiled.build.quantised else job.rows()
    verdict = check_artifact(compiled.build, job, directory, facts, compiled.typed, watch, rows)
    if why := page.why_no_page():
        watch.note(why)
    known = dataclasses.replace(watch, stages=log.stages | watch.stages, notes=[*log.notes, *watch.notes])
    before = {"source": job.source.graph, "fused": job.fused.graph if job.fused and target.FUSES else None}
    document = report.build_report(facts, before, job.proof, verdict, known, report.ArtifactSize.of(directory), job.inputs)
    hashes |= page.write_report(
        directory, {**document, "int8": {**quantised.document, **quantised.measured}} if quantised else document
    )
    artifact.write_manifest(directory, facts, hashes)


def lower_graph(build: Build, job: Job) -> Graph:
    """The graph in the form its compiler takes best.

    Lowered first: what follows sees standard operators, whose schemas say which types they take.
    """
    target = targets.get(build.spec.name)
    graph = job.fused.graph if job.fused and target.FUSES else job.source.graph
    graph = job.packed.graph if job.packed else graph
    given = {"plugins": job.recipe.plugins} if job.recipe.plugins else {}
    return target.lower(graph, build.spec.sms, quantised=build.quantised, **given)


def quantise_graph(build: Build, job: Job, graph: Graph, watch: Progress, parts: Sequence[Observed] = ()) -> quant.LowBitGraph:
    """The graph in the low-bit form that was asked for, as far as the data, the budget and this machine allow."""
    from . import quant

    quantised = quant.quantise_graph(graph, job.source, quantisation_request(build, job), build.name, watch, parts)
    if "curve" in quantised.document and quant.drop_limit(job.recipe.budget) is not None:
        watch.show(tables.curve_table(quantised.document))
    return quantised


def quantisation_request(build: Build, job: Job) -> quant.LowBitRequest:
    """What a low-bit form is made for."""
    from . import quant

    target, recipe = targets.get(build.spec.name), job.recipe
    path, limit = Path(recipe.data) if recipe.data else None, quant.drop_limit(recipe.budget)
    judged = (build.limits, job.goldens.of_packed(packing_facts(job)) if recipe.verify else None)
    words = (build.precision, build.spec.name, target.INT8_BASE, target.INT8_ATTENTION)
    return quant.LowBitRequest(*words, path, limit, job.ranges, *judged)


def compile_graph(build: Build, job: Job, graph: Graph, directory: Path, watch: Progress) -> Compiled:
    """Type a lowered graph and give it to its compiler."""
    with watch.stage(f"{build.name}: precision"):
        typed = type_graph(build, job, graph)
        deduplicate_initializers(typed.graph.model, made=True)
        hashes = save_graph(typed.graph, directory / artifact.GRAPH)
    with watch.stage(f"{build.name}: compile"):
        where = (directory / artifact.GRAPH, directory)
        request = BuildRequest(typed.graph, *where, build.precision, build.spec.sms, job.ranges, job.timing_cache)
        built = targets.get(build.spec.name).build(request)
    watch.stages[f"{build.name}: compile, builder alone"] = built.seconds
    return Compiled(build, typed, request, built, hashes | dict(built.files))


def keep_better_engine(
    compiled: Compiled, quantised: quant.LowBitGraph, job: Job, directory: Path, watch: Progress
) -> tuple[Compiled, quant.LowBitGraph]:  # fmt: skip
    """The int8 engine, or that of the base precision where int8 is not worth it (see quant/engine_choice.py)."""
    from .quant import engine_choice as worth

    base = in_base_precision(compiled.build)
    with scratch() as folder:
        other = compile_graph(base, job, lower_graph(base, job), folder, watch)
        with watch.stage(f"{compiled.build.name}: compare with {base.precision}"):
            int8 = worth.estimate_engine(
                compiled.typed.graph, compiled.built.facts, compiled.request, quantised.document["share"]
            )
            beside = worth.estimate_engine(other.typed.graph, other.built.facts, other.request)
        found = worth.EngineChoice(int8, beside, base.precision, job.ranges[0])
        if found.kept != compiled.build.precision:
            for name in other.hashes:
                shutil.copyfile(folder / name, directory / name)
    watch.note(found.summary())
    quantised = dataclasses.replace(quantised, document={**quantised.document, "worth": found.to_json()})
    return (compiled if found.kept == compiled.build.precision else other), quantised


def in_base_precision(build: Build) -> Build:
    """The same build in the precision of what is not int8, judged by that one's own limits: `max_drop` asked for int8."""
    limits = {name: limit for name, limit in build.limits.items() if name != "max_drop"}
    return dataclasses.replace(build, precision=targets.get(build.spec.name).INT8_BASE, limits=limits)


def type_graph(build: Build, job: Job, graph: Graph) -> Typed:
    """The types of a lowered graph, by its precision mode; what is not int8 in an int8 build is of the target's choice."""
    mode, target = precision.get(build.precision), targets.get(build.spec.name)
    given: dict[str, Any] = {"base": target.INT8_BASE} if build.quantised else {}
    if hasattr(target, "KERNELS"):
        given["kernels"] = target.KERNELS
    return mode.apply(graph, value_evidence(job), **given)


def value_evidence(job: Job) -> Evidence:
    """What values are measured on."""
    rows, recipe = job.rows(), job.recipe
    file = Path(str(recipe.data)).name if rows or recipe.goldens == "data" else None
    return on_data.collect_evidence(job.proof.samples, job.source, rows, file, recipe.seed)


def check_artifact(
    build: Build,
    job: Job,
    directory: Path,
    facts: Mapping[str, Any],
    typed: Typed,
    watch: Progress,
    rows: verification.Truth | None = None,
) -> verification.Verdict | None:
    """Verify an artifact on its goldens before it is written, and on --data: a low-bit one on rows that calibrated nothing of it.

    None where the recipe says not to. Raises VerifyFailed when it is over its budget, or where that asks for what nothing shows.
    """
    if not job.recipe.verify:
        watch.note(f"{build.name}: not verified (--no-verify); {verification.run_once(directory, job.proof.samples)}")
        return None
    with watch.stage(f"{build.name}: verify") as advance:
        truths = [job.goldens, *([rows] if rows else [])]
        verdicts = [verification.run_and_judge(directory, facts, typed.graph, truth, advance) for truth in truths]
    for verdict in verdicts:
        watch.say(f"{verdict.summary()} on {verdict.data}" if rows else verdict.summary())
        if not verdict.passed:
            why = f"on {verdict.data}: {verdict.reasons()}"
            raise VerifyFailed(f"{build.name} is {verdict.shortfall()}: {why}; nothing was written{verdict.advice()}")
    for note in verdicts[-1].notes:
        watch.note(f"{build.name}: {note}")
    return verdicts[-1]


def packing_facts(job: Job) -> dict[str, Any]:
    """What the manifest says of packing; nothing where the batch is padded."""
    return {"packing": dict(job.packed.facts)} if job.packed else {}


def manifest_facts(
    build: Build, job: Job, typed: Typed, built: Built, quantised: quant.LowBitGraph | None = None
) -> dict[str, Any]:
    """What manifest.json says, but for the files: nothing in it depends on the time or the place of the build.

    (The files' hashes do in one entry: report.json holds the times of the stages.)
    """
    graph, source, recipe = typed.graph, job.source, job.recipe
    return {
        "bertc": VERSION,
        "source": source.facts(),
        "recipe": recipe.to_json(),
        "target": {"name": build.spec.name, "sms": list(build.spec.sms)},
        "precision": typed.plan.to_json(),
        "int8": dict(quantised.document) if quantised else None,
        "passes": job.fused.change.to_json() if job.fused and targets.get(build.spec.name).FUSES else None,
        "graph": {"opset": graph.opset, "ops": graph.op_counts(), "initializer_bytes": graph.initializer_bytes},
        **packing_facts(job),
        "engine": dict(built.facts),
        "inputs": [spec.to_json() for spec in graph.inputs],
        "outputs": [spec.to_json() for spec in graph.outputs],
        "dims": {name: dim.to_json() for name, dim in source.dims.items()},
        "index_bounds": index_bounds(source.graph),
        "masks": mask_kinds.mask_kinds(source.graph),
        "inputs_check": job.inputs.facts(),
        "profiles": profiles.profiles_to_json(job.ranges),
        "seed": recipe.seed,
        "budget": budget_for(build.precision, build.limits, carried=not quantised and bool(describe_quantised(graph))).limits(),
        "tools": dict(source.versions) | machine.versions(),
    }


def export(recipe: Recipe, out: Path, *, force: bool = False, progress: Progress | None = None) -> Artifact:
    """Only the first stages: the source as a float32 graph with goldens, to build from later without PyTorch."""
    only = dataclasses.replace(recipe, targets=("null",), precision="fp32", fuse=True, expect=None)
    return build_recipe(only, out, force=force, progress=progress)[0]
