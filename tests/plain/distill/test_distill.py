"""bertc distill on tiny random teachers: it learns, what it writes is a model, and what cannot be is refused before the work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import distilling
import numpy as np
import pytest

from bertc.cli import run
from bertc.core import ArtifactError, CheckFailed, DataError, InputError
from bertc.distill import Request, Settings, distill
from bertc.distill.teachers import Teachers

QUICK = Settings(**distilling.QUICK)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilling.text_file(tmp_path_factory.mktemp("data") / "texts.txt")


@pytest.fixture(scope="module")
def student(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "out"
    assert run(["distill", str(distilling.teacher()), "--data", str(data), "-o", str(out), *words(distilling.QUICK)]) == 0
    return out


def words(settings) -> list[str]:
    options = {name: each for name, each in settings.items() if name != "evaluations"}
    return [word for name, each in options.items() for word in (f"--{name.replace('_', '-')}", str(each))]


def document(path: Path):
    return json.loads((path / "distillation.json").read_text("utf-8"))


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_the_untrained_cut(tmp_path: Path, data: Path, seed: int) -> None:
    made = distill(Request((str(distilling.teacher()),), data), tmp_path / "s", dataclasses.replace(QUICK, seed=seed)).document
    cosine = [distilling.value(made, which, "mean cosine") for which in ("untrained", "student")]
    assert 1 - cosine[1] < 0.1 * (1 - cosine[0])
    rank = [distilling.value(made, which, "Spearman") for which in ("untrained", "student")]
    assert rank[1] > rank[0] + 0.01
    losses = made["training"]["losses"]
    assert losses[-1]["loss"] < 0.1 * losses[0]["loss"]
    assert not (tmp_path / "s.training").exists()


def test_what_is_written_is_a_sentence_transformer(student: Path) -> None:
    import sentence_transformers

    texts = distilling.sentences(3)
    vectors = sentence_transformers.SentenceTransformer(str(student), device="cpu").encode(texts)
    assert vectors.shape == (3, 32) and np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    made = document(student)
    assert made["layers"] == [1, 3] and made["shape"]["student"]["layers"] == 2
    assert made["teachers"][0]["reference"] == str(distilling.teacher()) and len(made["teachers"][0]["sha256"]) == 64
    page = (student / "distillation.html").read_text("utf-8")
    assert "mean cosine" in page and page.count("<svg") >= 3 and "Held-out measure" in page


def test_bertc_builds_it_and_judges_it_by_its_teacher(student: Path, data: Path, tmp_path: Path) -> None:
    built = str(tmp_path / "built")
    assert run(["build", str(student), "--fp32", "--target", "onnxruntime", "-o", built]) == 0
    against = ["verify", built, "--data", str(data), "--teacher", str(distilling.teacher())]
    lost = 1 - distilling.value(document(student), "student", "mean cosine")
    assert run([*against, "--max-drop", str(lost + 0.2)]) == 0
    assert run([*against, "--max-drop", "0.0001"]) == 1
    assert run(against) == 2  # nothing to judge by
    assert run([*against, "--max-drop", "0.5", "--against", str(student)]) == 2
    assert run(["verify", built, "--teacher", str(distilling.teacher()), "--max-drop", "0.5"]) == 2


def test_the_same_seed_gives_the_same_bytes_and_so_does_resuming(
    student: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, settings = (
        Request((str(distilling.teacher()),), data),
        dataclasses.replace(QUICK, evaluations=10, checkpoint_seconds=0),
    )
    whole = distill(request, tmp_path / "whole", settings)
    from bertc.distill.loop import Loop

    step = Loop._step

    def stopped(self: Loop) -> None:
        if self.found.steps == 25:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Loop, "_step", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"step 25 .*--resume"):
        distill(request, tmp_path / "again", settings)
    monkeypatch.setattr(Loop, "_step", step)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ArtifactError, match="--resume"):
        distill(request, tmp_path / "again", settings)
    with pytest.raises(ArtifactError, match="other settings"):
        distill(request, tmp_path / "again", dataclasses.replace(settings, seed=5), resume=True)
    resumed = distill(request, tmp_path / "again", settings, resume=True)
    assert weights(resumed.path) == weights(whole.path)
    assert resumed.document["quality"] == whole.document["quality"]
    assert not (tmp_path / "again.training").exists()


def test_a_teacher_that_is_touched_is_found(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = Teachers.vectors

    def doctored(self: Teachers, *given, **named):
        found = vectors(self, *given, **named)
        next(self.first.module.parameters()).data[0, 0] += 1e-3
        return found

    monkeypatch.setattr(Teachers, "vectors", doctored)
    with pytest.raises(CheckFailed, match="changed while the student learned"):
        distill(Request((str(distilling.teacher()),), data), tmp_path / "s", dataclasses.replace(QUICK, steps=2))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("losses", "width"),
    [
        ({"cosine": 1.0, "hidden": 0.1, "attention": 0.1, "embedding": 0.1}, None),
        ({"cosine": 1.0, "similarity": 0.1, "relations": 1.0, "hidden": 0.1, "embedding": 0.1}, 16),
    ],
)
def test_losses_between_layers_and_a_narrower_student(data: Path, tmp_path: Path, losses, width) -> None:
    settings = dataclasses.replace(QUICK, losses=losses, width=width, steps=40)
    made = distill(Request((str(distilling.teacher()),), data), tmp_path / "s", settings).document
    assert set(made["training"]["losses"][0]) == {"step", "loss", *losses}
    assert made["training"]["losses"][-1]["loss"] < made["training"]["losses"][0]["loss"]
    assert made["shape"]["student"]["width"] == (width or 32)
    if width:
        built = str(tmp_path / "built")
        assert run(["build", str(tmp_path / "s"), "--fp32", "--target", "onnxruntime", "-o", built]) == 0


@pytest.mark.parametrize("task", ["features", "token-classification", "question-answering", "masked-lm"])
def test_teachers_of_tokens(task: str, data: Path, tmp_path: Path) -> None:
    given = data
    if task == "question-answering":
        lines = distilling.sentences(120)
        given = distilling.rows_file(
            tmp_path / "p.jsonl", [{"text": a, "text_pair": b} for a, b in zip(lines[::2], lines[1::2], strict=True)]
        )
    settings = dataclasses.replace(QUICK, steps=60, losses={"tokens": 1.0} if task == "features" else {"logits": 1.0})
    made = distill(Request((str(distilling.encoder(task)),), given), tmp_path / "s", settings).document
    assert made["task"] == task
    measured = [each[0]["value"] for each in (made["quality"]["untrained"], made["quality"]["student"])]
    assert made["training"]["losses"][-1]["loss"] < made["training"]["losses"][0]["loss"] and measured[1] >= measured[0] - 0.05


def test_pretraining_and_fine_tuning(data: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, steps=20)
    made = distill(Request((str(distilling.encoder("masked-lm")),), data), tmp_path / "lm", settings).document
    assert set(made["losses"]) == {"logits", "masked-lm", "tokens"}
    rows = [{"text": text, "label": f"LABEL_{len(text) % 3}"} for text in distilling.sentences(150)]
    labels = distilling.rows_file(tmp_path / "l.jsonl", rows)
    teacher = str(distilling.encoder("sequence-classification"))
    made = distill(Request((teacher,), data, labels), tmp_path / "fine", settings).document
    assert set(made["losses"]) == {"logits", "labels"} and made["quality"]["tasks"][0]["name"] == "accuracy on labels"
    wrong = distilling.rows_file(tmp_path / "w.jsonl", [{**row, "label": "unknown"} for row in rows])
    with pytest.raises(DataError, match="no class"):
        distill(Request((teacher,), None, wrong), tmp_path / "w", settings)


def test_several_teachers_and_a_reranker(tmp_path: Path) -> None:
    lines = distilling.sentences(160)
    pairs = distilling.rows_file(
        tmp_path / "p.jsonl", [{"text": a, "text_pair": b} for a, b in zip(lines[::2], lines[1::2], strict=True)]
    )
    settings = dataclasses.replace(QUICK, steps=20, teacher_weights=(0.7, 0.3), batch=16)
    both = (str(distilling.teacher()), str(distilling.copy_of(distilling.teacher(), tmp_path / "second")))
    made = distill(Request((*both, str(distilling.reranker())), pairs), tmp_path / "s", settings).document
    assert made["shares"] == [0.7, 0.3] and "margin" in made["losses"] and len(made["teachers"]) == 3
    with pytest.raises(InputError, match="for masked-lm, the first teacher for sentence-embedding"):
        distill(Request((both[0], str(distilling.encoder("masked-lm"))), pairs), tmp_path / "w", settings)
    with pytest.raises(InputError, match="2 weights of teachers for 1 teachers"):
        distill(Request((both[0],), pairs), tmp_path / "w", settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "9"], "more than the teacher has"),
        (["--loss", "cosin"], "did you mean 'cosine'"),
        (["--loss", "cosine=x"], "NAME=WEIGHT"),
        (["--loss", "cosine=-1"], "0 or more"),
        (["--loss", "labels"], "labelled rows"),
        (["--loss", "logits"], "another task"),
        (["--loss", "margin"], "reranker"),
        (["--weights", "a"], "one number a teacher"),
        (["--device", "cuda:99"], "no GPU"),
        (["--device", "gpu"], "no device"),
        (["--resume"], "there is no"),
        (["--adapter", "x"], "merge it first"),
        (["--layer-map", "1;2"], "by number"),
        (["--learning-rate", "0"], "learning-rate"),
    ],
)
def test_refused_before_the_work(options, said, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["distill", str(distilling.teacher()), "--data", str(data), "-o", str(tmp_path / "s"), *options])
    assert code == (3 if said == "no GPU" else 2) and said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_references_and_places(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(distilling.teacher())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for reference, given, out, said in (
        (f"{teacher}x", data, "s", "did you mean 'teacher'"),
        (teacher, data, "full", "exists"),
        (teacher, tmp_path / "no.txt", "s", "not there"),
    ):
        assert run(["distill", reference, "--data", str(given), "-o", str(tmp_path / out), "--layers", "2"]) == 2
        assert said in capsys.readouterr().err
    assert run(["distill", teacher, "-o", str(tmp_path / "s")]) == 2 and "nothing to learn from" in capsys.readouterr().err
    assert run(["distill", teacher, "--data", str(data), "-o", "/proc/s", "--layers", "2"]) == 2
    assert run(["distill", teacher, "--data", str(data), "-o", str(tmp_path / "full"), "--force", "--layers", "2"]) == 2
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
