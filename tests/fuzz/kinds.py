"""The kinds of files that people and other machines write, a small one of each, and the commands that read it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fleets
import lowbit
import models
import tiny

from bertc import cli


@dataclasses.dataclass(frozen=True)
class Kind:
    """`file` lies in `root`, a folder that `make` writes; {root}, {file}, {good} and {out} stand in the commands."""

    name: str
    make: Callable[[], Path]
    file: str
    commands: tuple[str, ...]
    listed: bool = False  # the artifact's manifest has its hash, which a sender writes too
    exported: str = ""  # of a checkpoint: "module" where the file decides what is traced, "texts" where it does not

    @property
    def format(self) -> str:
        return {"toml": "toml", "jsonl": "jsonl"}.get(self.file.rpartition(".")[2], "json")

    def copied(self, to: Path) -> Path:
        """A fresh copy of the folder; returns the path of the file in it."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.make(), to)
        return to / self.file

    def arguments(self, command: str, root: Path, out: Path) -> list[str]:
        given = {"root": root, "file": root / self.file, "good": self.make(), "out": out}
        return [word.format(**given) for word in command.split()]

    def rehash(self, root: Path) -> None:
        """Make the manifest list the file as it is now."""
        if not self.listed:
            return
        path = root / "art" / "manifest.json"
        manifest = json.loads(path.read_text("utf-8"))
        content = (root / self.file).read_bytes()
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest["files"][self.file.removeprefix("art/")] = entry
        path.write_text(json.dumps(manifest), "utf-8")


def _run(*words: object) -> None:
    code = cli.run([*map(str, words), "--quiet"])
    assert code == 0, words


def _folder(name: str) -> Path:
    made = models.folder() / f"kind-{name}"
    made.mkdir()
    return made


@functools.cache
def artifact() -> Path:
    folder = _folder("artifact")
    source = models.folder() / "kind-source"
    source.mkdir()
    lowbit.encoder(source)
    lowbit.texts(folder / "texts.txt", 40)
    settings = {"model_max_length": 32, "pad_token": "[PAD]", "padding_side": "right", "model_input_names": ["input_ids"]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}}))
    (source / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b"}, "problem_type": None}))
    _run("build", source / "m.onnx", "--target", "onnxruntime=fp32", "-o", folder / "art")
    return folder


@functools.cache
def checkpoint() -> Path:
    folder = _folder("checkpoint")
    shutil.copytree(models.one_layer("features"), folder / "model")
    return folder


@functools.cache
def classifier() -> Path:
    folder = _folder("classifier")
    shutil.copytree(models.one_layer("sequence-classification"), folder / "model")
    return folder


@functools.cache
def sentences() -> Path:
    folder = _folder("sentences")
    models.sentence_transformer(
        folder / "model", {"pooling_mode_mean_tokens": True}, ("Normalize",), models.one_layer("features")
    )
    settings = {"prompts": {"query": "the ", "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    (folder / "model" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (folder / "model" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder


@functools.cache
def audio() -> Path:
    folder = _folder("audio")
    shutil.copytree(models.one_layer("audio-features"), folder / "model")
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@functools.cache
def recipe() -> Path:
    folder = _folder("recipe")
    tiny.encoder(folder / "m.onnx", tokenizer=True)
    text = (
        'source = "m.onnx"\ntargets = ["null"]\nprofiles = ["batch=1:2:4,length=1:8:16"]\nids = "int64"\nopset = 20\nseed = 1\n'
        'goldens = "synthetic"\nprecision = "fp32"\nfuse = false\nverify = true\n[budget]\ncosine = 0.9\n'
    )
    (folder / "recipe.toml").write_text(text)
    return folder


@functools.cache
def fleet() -> Path:
    folder = _folder("fleet")
    fleets.write(
        folder, "ab", 'targets = ["null"]\nprecisions = ["fp32"]\nshards = 1\nout = "out"\nstore = "s"\nper_sm = false\n'
    )
    more = (
        'seed = 2\n[[exclude]]\nmodel = "b"\n[[override]]\nmodel = "a"\nmemory = "1 GB"\ncores = 1\n'
        'budget = { cosine = 0.9 }\n[[include]]\ntarget = "onnxruntime"\nprecision = "fp32"\nmodel = "b"\n'
        '[runners]\nany = ["self-hosted"]\n'
    )
    with (folder / "fleet.toml").open("a") as file:
        file.write(more)
    _run("fleet", "build", folder / "fleet.toml", "--jobs", 1)
    return folder


@functools.cache
def ranges() -> Path:
    folder = _folder("ranges")
    lowbit.encoder(folder)
    lowbit.texts(folder / "texts.txt", 40)
    for part in (1, 2):
        _run(
            "calibrate", folder / "m.onnx", "--data", folder / "texts.txt", "--shard", f"{part}/2", "-o", folder / f"{part}.json"
        )
    return folder


@functools.cache
def serving() -> Path:
    folder = _folder("serving")
    shutil.copytree(artifact() / "art", folder / "art")
    text = (
        'host = "127.0.0.1"\nport = 8080\nworkers = 1\nthreads = 1\npolicy = "cost"\nmax_rows = 8\nmemory = "1GB"\n'
        '[limits]\ndeadline_ms = 100.0\n[models.m]\nartifact = "art"\nmax_rows = 4\n'
    )
    (folder / "serving.toml").write_text(text)
    return folder


@functools.cache
def requests() -> Path:
    folder = _folder("requests")
    rows = [{"length": 17}, {"lengths": [17, 30], "count": 3}, {"length": 5, "count": 2}]
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@functools.cache
def texts() -> Path:
    folder = _folder("texts")
    shutil.copytree(artifact() / "art", folder / "art")
    rows = [{"text": "two words"}, {"text": "and", "label": 1}, {"text": "more words", "text_pair": "two"}]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@functools.cache
def costs() -> Path:
    folder = _folder("costs")
    shutil.copytree(artifact() / "art", folder / "art")
    (folder / "lengths.txt").write_text("3 4\n8 2\n")
    _run("bench", folder / "art", "--serving", "--rounds", 1, "--shapes", "1x4", "--threads", 1)
    return folder


@functools.cache
def verdicts() -> Path:
    folder = _folder("verdicts")
    shutil.copytree(artifact() / "art", folder / "art")
    import contextlib
    import io

    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        _run("verify", folder / "art", "--json")
    (folder / "verdict.json").write_text(told.getvalue())
    return folder


ON_ARTIFACT = (
    "inspect {root}/art",
    "inspect {good}/art --diff {root}/art",
    "report {root}/art -o {out}",
    "verify {root}/art",
    "build {root}/art --target null --no-fuse -o {out}",
    "export {root}/art -o {out}",
    "calibrate {root}/art --data {good}/texts.txt -o {out}",
    "bench {root}/art --rounds 1 --shapes 1x4 --threads 1",
)
ON_TEXT = ("verify {root}/art --data {good}/texts.txt --against {root}/art", ON_ARTIFACT[4], ON_ARTIFACT[5], ON_ARTIFACT[6])
EXPORT = ("export {root}/model -o {out}",)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("manifest", artifact, "art/manifest.json", ON_ARTIFACT),
        Kind("report", artifact, "art/report.json", ON_ARTIFACT[:3], listed=True),
        Kind("artifact's tokenizer_config", artifact, "art/tokenizer/tokenizer_config.json", ON_TEXT, listed=True),
        Kind("artifact's tokenizer", artifact, "art/tokenizer/tokenizer.json", ON_TEXT, listed=True),
        Kind("verdict", verdicts, "verdict.json", ("report {root}/art --verdict {file} -o {out}",)),
        Kind("recipe", recipe, "recipe.toml", ("build {file} -o {out}", "export {file} -o {out}")),
        Kind("fleet", fleet, "fleet.toml", ("fleet plan {file}", "fleet status {file}", "report {file} -o {out}")),
        Kind(
            "lock",
            fleet,
            "fleet.lock.json",
            (
                "fleet status {root}/fleet.toml",
                "fleet build {root}/fleet.toml --locked --jobs 1",
                "cache gc {root}/s --lock {file} --dry-run",
                "report {file} -o {out}",
            ),
        ),
        Kind("ranges", ranges, "1.json", ("calibrate --merge {file} {good}/2.json -o {out}",)),
        Kind("serving", serving, "serving.toml", ("package --config {file} --triton {out} {root}/art",)),
        Kind(
            "cost",
            costs,
            "art.cost.json",
            ("plan-serving {root}/art --requests {good}/lengths.txt --rate 5 --p99 500ms -o {out}",),
        ),
        Kind("requests", requests, "requests.jsonl", ("profile {file}",)),
        Kind("texts", texts, "texts.jsonl", ("calibrate {root}/art --data {file} -o {out}",)),
        Kind("config", checkpoint, "model/config.json", EXPORT, exported="module"),
        Kind("tokenizer", checkpoint, "model/tokenizer.json", EXPORT, exported="texts"),
        Kind("tokenizer_config", checkpoint, "model/tokenizer_config.json", EXPORT, exported="texts"),
        Kind("classifier's config", classifier, "model/config.json", EXPORT, exported="module"),
        Kind("modules", sentences, "model/modules.json", EXPORT, exported="module"),
        Kind("pooling", sentences, "model/1_Pooling/config.json", EXPORT, exported="module"),
        Kind("sentence_bert_config", sentences, "model/sentence_bert_config.json", EXPORT, exported="texts"),
        Kind("config_sentence_transformers", sentences, "model/config_sentence_transformers.json", EXPORT, exported="texts"),
        Kind("preprocessor_config", audio, "model/preprocessor_config.json", EXPORT, exported="texts"),
        Kind("audio config", audio, "model/config.json", EXPORT, exported="module"),
    )
}
