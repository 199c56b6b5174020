"""A compressed model on disk: a Hugging Face folder where its config can say it, else an export, as `bertc export` writes it.

An export is a graph with goldens of the compressed module: it needs neither PyTorch nor any code to be read, and `bertc build`
starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import pipeline
from ..artifact import COMPRESSION
from ..core import Progress, disk_errors
from ..distill import Net, write_model
from ..recipe import Recipe, plan_builds
from ..report import page
from ..source import Source, torch_export
from ..verification import check_export, check_inputs
from .engine import OPSET, dims_of, module_of
from .heads import uniform
from .page import render
from .parts import all_the_same, parts_of
from .sharing import apart, is_shared

HUGGING_FACE, EXPORT = "huggingface", "export"


def form_of(net: Net) -> str:
    """What a model can be written as: by its shapes, not by what was asked for."""
    plain = all(hasattr(each.get(name), "in_features") for each in parts_of(net) for name in (each.first, each.second))
    return HUGGING_FACE if plain and uniform(net) and all_the_same([each.neurons for each in parts_of(net)]) else EXPORT


def write(net: Net, folder: Path, document: Mapping[str, Any], reference: str, seed: int, log: Progress) -> None:
    """The model, its document and its page into an empty folder."""
    write_net(net, folder, reference, seed, log)
    with disk_errors(folder):
        for note in page.write_document(folder, COMPRESSION, document, render):
            log.note(note)


def write_net(net: Net, folder: Path, reference: str, seed: int, log: Progress) -> None:
    """The model alone, in the form that its shapes allow (`form_of`)."""
    if form_of(net) == HUGGING_FACE:
        write_model(apart(net) if is_shared(net) else net, folder)
    else:
        _write_export(net, folder, reference, seed, log)


def _write_export(net: Net, folder: Path, reference: str, seed: int, log: Progress) -> None:
    recipe = Recipe(source=reference, task=net.task, targets=("null",), precision="fp32", seed=seed)
    source = source_of(net, reference, log)
    ranges = pipeline.choose_profiles(recipe, source)
    with log.stage("check export") as advance:
        proof = check_export(source, ranges, advance, seed=seed, golden_data=None, has_data=False)
    log.say(proof.summary())
    inputs = check_inputs(source, log)
    builds = plan_builds(recipe)
    fused = pipeline.fuse_graph(recipe, source, builds, proof, log)
    job = pipeline.Job(recipe, source, ranges, proof, fused, inputs=inputs)
    pipeline.build_artifact(builds[0], job, folder, log)


def source_of(net: Net, reference: str, log: Progress) -> Source:
    """The compressed module as a source: its graph, and PyTorch as the truth about it."""
    made = module_of(net)
    with log.stage("export"):
        graph, outputs = torch_export.export_module(made, OPSET)
    said = f"compressed by bertc from {reference}; the weights are in no checkpoint"
    compared = "a compressed model has its original's tokenizer, which bertc build compares with its library"
    return Source(
        reference=reference,
        kind="huggingface",
        sha256=torch_export.state_sha256(net.module),
        task=net.task,
        graph=graph,
        dims=dims_of(made),
        run=torch_export.module_runner(made, outputs),
        assets=tuple(net.origin.assets.values()),
        notes=(said,),
        inputs_record={"against": "", "compared": "", "reason": compared},
    )
