"""An artifact against its source: on goldens, on a user's data, on the engine where it runs and on its typed graph where not."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import targets
from ..artifact import Artifact, goldens, read_in_place
from ..artifact import manifest as artifact
from ..core import Advance, DataError, Feeds, InputError, Missing, Outputs, Progress, RunFailed, VerifyFailed, naming
from ..data import Labels, Layout, Sample, read_data
from ..graph import Graph, load_graph, short_reason
from ..packing import zero_padding
from ..runtime import HALVES, ReferenceRunner, Runner
from . import budgets
from .budgets import DECISION_LIMITS, Budget, Violation, budget_for
from .choices import Ties
from .comparison import Comparison
from .intervals import FAILED, PASSED, UNDECIDED
from .result import ComparisonResult

if TYPE_CHECKING:
    from ..source import GivenSource, Reference

WINDOW = 16  # samples whose outputs are held at a time
RunSource = Callable[[Feeds], Outputs]


@dataclasses.dataclass(frozen=True)
class Truth:
    """Samples and the source's outputs for them, or a function that computes them one sample at a time.

    `outputs` is None where the source is not available and there are only the samples' labels. `labels` say what
    the labels of the samples mean, None where they have none.
    """

    samples: Sequence[Sample]
    outputs: Sequence[Outputs] | RunSource | None
    name: str
    notes: tuple[str, ...] = ()
    synthetic: bool = True
    labels: Labels | None = None
    packing: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the artifact's, of its manifest

    def of_packed(self, facts: Mapping[str, Any]) -> Truth:
        """The same where a manifest says that its artifact is packed: what the source answers at padding is no truth."""
        packing = facts.get("packing")
        return dataclasses.replace(self, packing=packing) if isinstance(packing, dict) else self

    def pairs(self) -> Iterator[tuple[Sample, Outputs | None]]:
        if self.outputs is None:
            yield from ((sample, None) for sample in self.samples)
        elif callable(self.outputs):
            yield from ((sample, self._answered(self.outputs(sample.feeds), sample)) for sample in self.samples)
        else:
            pairs = zip(self.samples, self.outputs, strict=True)
            yield from ((sample, self._answered(outputs, sample)) for sample, outputs in pairs)

    def _answered(self, outputs: Outputs, sample: Sample) -> Outputs:
        return zero_padding(outputs, sample.feeds, self.packing) if self.packing else outputs


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was compared and whether it is within budget. `graph` and `engine` are None where that one was not run."""

    target: str
    precision: str
    data: str
    budget: Budget
    engine: ComparisonResult | None
    engine_reason: str
    graph: ComparisonResult | None
    violations: tuple[Violation, ...]
    notes: tuple[str, ...] = ()
    path: str = ""

    @property
    def passed(self) -> bool:
        return not self.violations

    @property
    def verdict(self) -> str:
        """`passed`; `failed`; or `undecided`: nothing is broken, and too few rows show that a limit is kept."""
        if all(violation.undecided for violation in self.violations):
            return UNDECIDED if self.violations else PASSED
        return FAILED

    @property
    def engine_executed(self) -> bool:
        return self.engine is not None

    @property
    def result(self) -> ComparisonResult:
        """The result that counts: the engine's where it ran."""
        found = self.engine or self.graph
        assert found is not None, "run_and_judge() runs one of the two"
        return found

    def summary(self) -> str:
        """`graph: verified, engine: NOT RUN (no NVIDIA GPU)`: what was proven, and what was not."""
        outcome = {PASSED: "verified", FAILED: "FAILED", UNDECIDED: "UNDECIDED"}[self.verdict]
        graph = f"graph: {outcome}, " if self.graph else ""
        engine = f"engine: {outcome}" if self.engine else f"engine: NOT RUN ({self.engine_reason})"
        return graph + engine

    def shortfall(self) -> str:
        """What is wrong with an artifact that did not pass, in words."""
        return "over its budget" if self.verdict == FAILED else "undecided"

    def advice(self) -> str:
        """How to find out why a build failed, where its precision may be the cause."""
        if self.precision == "fp32" or self.verdict != FAILED:
            return ""
        return ". To find the nodes that cause it: build with --no-verify, then `bertc verify OUT --bisect`"

    def reasons(self) -> str:
        return "; ".join(map(str, self.violations)) or "none"

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": self.path,
            "target": self.target,
            "precision": self.precision,
            "data": self.data,
            "verdict": self.verdict,
            "engine_executed": self.engine_executed,
            "engine_reason": self.engine_reason,
            "budget": self.budget.limits(),
            "graph": self.graph.to_json() if self.graph else None,
            "engine": self.engine.to_json() if self.engine else None,
            "violations": [v.to_json() for v in self.violations],
            "notes": list(self.notes),
        }


def verify(
    path: Path,
    *,
    data_path: Path | None = None,
    against: GivenSource | None = None,
    require_engine: bool = False,
    budget: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> tuple[Verdict, ...]:
    """Verify the artifact at `path`, or each artifact below it. Hashes are checked before anything is loaded.

    `budget` goes over the recorded one.

    Without data the goldens in the artifact are the truth and nothing but ONNX Runtime is needed. Data is answered by `against`,
    which must be what the artifact was built from (its sha256) unless it says otherwise. Raises DataError for data without
    labels and no `against`, Missing (exit 3) where PyTorch for it is not there; and for `require_engine` where the engine
    cannot run.
    """
    if against is not None and against.teacher and not budget:
        raise InputError("--teacher: nothing would be judged; give --max-drop NUMBER (2 only measures)")
    log = progress or Progress()
    return read_in_place(path, lambda: _verify_all(path, data_path, against, require_engine, budget, log))


def _verify_all(
    path: Path,
    data_path: Path | None,
    against: GivenSource | None,
    require_engine: bool,
    budget: Mapping[str, float] | None,
    log: Progress,
) -> tuple[Verdict, ...]:
    from ..source import open_reference

    verdicts = []
    open_cached = functools.cache(open_reference)  # several artifacts have one source: it is loaded once
    for each in artifact.find_artifacts(path):
        found = artifact.open_artifact(each)
        with log.stage(f"verify {each.name}") as advance, naming(each):
            truth = find_truth(found, data_path, against, open_cached)
            graph = found.graph()
            recorded, carried = recorded_limits(found.manifest), _carries(found.manifest, graph)
            limits = budget_for(found.precision, recorded, budget, carried=carried)
            if against is not None and against.teacher:
                limits = budgets.budget_of_teacher(budget or {})
            _refuse_unjudgeable(budget or {}, truth)
            verdict = run_and_judge(each, found.manifest, graph, truth, advance, limits)
        if require_engine and not verdict.engine_executed:
            raise Missing(f"--require-engine: the engine of {each} cannot run here: {verdict.engine_reason}")
        verdicts.append(dataclasses.replace(verdict, path=str(each)))
    return tuple(verdicts)


def _refuse_unjudgeable(budget: Mapping[str, float], truth: Truth) -> None:
    """A limit given for this run that it cannot judge is an error: a pass would say that it is kept."""
    limits_set = [name for name in DECISION_LIMITS if name in budget]
    if limits_set and truth.synthetic:
        raise DataError(f"{limits_set[0]} cannot be judged on synthetic samples; give --data FILE")


def recorded_limits(facts: Mapping[str, Any]) -> Mapping[str, float]:
    """The limits that an artifact was built with, from its manifest."""
    return {name: limit for name, limit in facts.get("budget", {}).items() if limit is not None}


def _carries(facts: Mapping[str, Any], graph: Graph) -> bool:
    """Whether int8 activations in a graph are the source's own: no bertc quantised it."""
    from ..source import describe_quantised

    return not facts.get("int8") and bool(describe_quantised(graph))


def find_truth(
    found: Artifact, data_path: Path | None, against: GivenSource | None, open_reference: Callable[..., Reference]
) -> Truth:
    """Goldens; or the samples of `data_path` answered by `against`, and by nobody where they have labels and it is not given."""
    if against is not None and against.teacher and data_path is None:
        raise DataError("--teacher: a student is held against its teacher on texts, not on synthetic samples; give --data FILE")
    if data_path is None and against is None:
        return Truth(*goldens.load_goldens(found.goldens), "goldens", synthetic=_synthetic(found))
    if data_path is None:
        assert against is not None
        answer, notes = _source_runner(found, against, open_reference)
        samples, _ = goldens.load_goldens(found.goldens)
        return Truth(samples, answer, f"inputs of the goldens, outputs of {against}", notes, synthetic=_synthetic(found))
    labels = Labels.from_assets(found.task, found.assets, found.outputs)
    read = read_data(data_path, found.inputs, found.dims, found.assets, found.profiles, labels, found.index_bounds)
    labelled = any(sample.labels for sample in read.samples)
    if against is not None:
        outputs, notes = _source_runner(found, against, open_reference)
    elif not labelled:
        from ..source import source_wanted

        raise source_wanted(found, f"verifying on {data_path} (rows without labels)")
    else:
        outputs = None
        notes = ("the drop is unknown, only the artifact's own metric is given: the source answers with --against SOURCE",)
    return Truth(read.samples, outputs, str(data_path), (*read.notes, *notes), False, labels if labelled else None)


def _synthetic(found: Artifact) -> bool:
    return found.manifest.get("recipe", {}).get("goldens", "synthetic") == "synthetic"


def _source_runner(
    found: Artifact, against: GivenSource, open_reference: Callable[..., Reference]
) -> tuple[RunSource, tuple[str, ...]]:
    """(the computation of the source that was given, notes). Raises DataError where it is not the artifact's own."""
    from ..source import check_same_source, check_same_words, options_for

    path = Path(against.reference)
    if against.teacher:
        check_same_words(found, against)
    run: RunSource
    if (path / artifact.MANIFEST).is_file():
        runner = load_runner(path)
        run, sha256 = runner.run, str(artifact.open_artifact(path).manifest["source"]["sha256"])
    else:
        reference = open_reference(against.reference, options_for(found, against))
        run, sha256 = reference.run, reference.sha256
    check_same_source(found, against, sha256)
    if against.teacher:
        return run, (f"{against} is the teacher: only limits given by --max-drop and --budget are judged",)
    changed = sha256 != found.manifest["source"]["sha256"]
    return run, (f"{against} is not the source that the artifact was built from",) if changed else ()


def run_and_judge(
    directory: Path, facts: Mapping[str, Any], graph: Graph, truth: Truth, advance: Advance, budget: Budget | None = None
) -> Verdict:
    """Run the engine where this machine can, and the typed graph on the reference where it cannot or where that shows more.

    The graph is run as well for a half-precision ONNX Runtime artifact: ONNX Runtime CPU does not show the type's overflow.
    """
    name, precision, task = facts["target"]["name"], facts["precision"]["mode"], facts["source"]["task"]
    budget = budget or budget_for(precision, recorded_limits(facts), carried=_carries(facts, graph))
    truth = truth.of_packed(facts)
    if truth.synthetic:
        # Random token ids decide nothing that anyone cares about, and near-ties are many: decisions are reported, not judged.
        budget = budget.without_decisions()
    target = targets.get(name)
    ready = target.available()
    from ..source import runner_of

    runners: dict[str, Runner] = {}
    if ready.run and name != "null":
        runners["engine"] = target.load(directory, facts)
    if not runners or precision != "fp32" or _is_half(graph):
        runners["graph"] = runner_of(graph) if precision == "fp32" else ReferenceRunner(graph)
    layout, ties = Layout.of(graph.inputs, graph.outputs), Ties(graph, budgets.choice_tolerance(budget))
    results = compare_runners(runners, truth, task, advance, layout, ties)
    found = tuple(v for result in results.values() for v in budgets.find_violations(result, budget))
    unshown = dict.fromkeys(note for result in results.values() for note in budgets.unshown(result, budget))
    notes = (*truth.notes, *_outside_profiles(runners, truth), *_not_judged_notes(facts, truth), *unshown)
    reason = "the null target has no engine" if name == "null" else ("" if ready.run else ready.reason)
    return Verdict(name, precision, truth.name, budget, results.get("engine"), reason, results.get("graph"), found, notes)


def _not_judged_notes(facts: Mapping[str, Any], truth: Truth) -> tuple[str, ...]:
    limits_set = [name for name in DECISION_LIMITS if truth.synthetic and facts.get("budget", {}).get(name) is not None]
    return (f"{' and '.join(limits_set)} not judged on synthetic samples (bertc verify --data FILE)",) if limits_set else ()


def _is_half(graph: Graph) -> bool:
    return any(v.dtype in HALVES for v in graph.model.graph.initializers.values())


def compare_runners(
    runners: Mapping[str, Runner],
    truth: Truth,
    task: str,
    advance: Advance,
    layout: Layout | None = None,
    ties: Ties | None = None,
) -> dict[str, ComparisonResult]:
    """Every runner on every sample, each sample's truth computed once. Memory is flat in the number of samples."""
    blank, sure = (truth.labels.blank if truth.labels else 0), not truth.synthetic
    known: dict[str, Any] = {"blank": blank, "labels": truth.labels, "intervals": sure, "layout": layout, "ties": ties}
    comparisons = {name: Comparison(task, **known) for name in runners}
    pairs, done = truth.pairs(), 0
    # A window at a time: PyTorch and ONNX Runtime each keep their threads spinning for the next call, on the other's cores.
    while window := list(itertools.islice(pairs, WINDOW)):
        for name, runner in runners.items():
            for sample, expected in window:
                if runner.takes(sample.feeds):
                    comparisons[name].add(expected, runner.run(sample.feeds), sample)
        done += len(window)
        advance(done, len(truth.samples))
    return {name: comparison.result() for name, comparison in comparisons.items()}


def find_broken_limits(runner: Runner, truth: Truth, task: str, budget: Budget, layout: Layout | None) -> tuple[Violation, ...]:
    """What a runner breaks of a budget on some samples, as `run_and_judge` would find it."""
    judged = budget.without_decisions() if truth.synthetic else budget
    result = compare_runners({"": runner}, truth, task, lambda done, total: None, layout)[""]
    return tuple(budgets.find_violations(result, judged))


def _outside_profiles(runners: Mapping[str, Runner], truth: Truth) -> tuple[str, ...]:
    """Goldens hold every size the model takes; an engine takes those of its profiles. The rest is noted."""
    outside = [s.label for r in runners.values() for s in truth.samples if not r.takes(s.feeds)]
    if not outside:
        return ()
    return (f"{len(outside)} samples lie outside the engine's profiles and were not run on it: {'; '.join(outside)}",)


def run_once(directory: Path, samples: Sequence[Sample]) -> str:
    """Run the graph that was written, unverified, on its smallest sample; returns a note. VerifyFailed where it does not run."""
    sample = min(samples, key=lambda each: sum(array.size for array in each.feeds.values()))
    try:
        ReferenceRunner(load_graph(directory / artifact.GRAPH)).run(sample.feeds)
    except RunFailed as error:
        raise VerifyFailed(f"the graph does not run at {sample.label}: {short_reason(error)}; nothing was written") from error
    return "its graph was run once"


# Engines that `load` makes of bytes whose hash it checks itself: they are read once.
READ_WHEN_LOADED = {
    "null": "graph.onnx",
    **dict.fromkeys(("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"), "model.onnx"),
    **dict.fromkeys(("tensorrt", "tensorrt-rtx"), "engine.plan"),
}


def load_runner(path: Path) -> Runner:
    """The runner of an artifact, hashes checked first. Missing when this machine cannot run its engine."""
    found = artifact.open_artifact(path, later=READ_WHEN_LOADED)
    ready = targets.get(found.target).available()
    if not ready.run:
        raise Missing(f"the engine of {path} (target {found.target}) cannot run here: {ready.reason}. {ready.install}")
    with naming(path):
        runner = targets.get(found.target).load(path, found.manifest)
    runner.tokenizer, runner.index_bounds, runner.masks = found.tokenizer, found.index_bounds, found.masks
    return runner
