"""serving.toml and plan-serving: what is written is served, and what is wrong is named with what is meant."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import served

from bertc.cli import run
from bertc.core import InputError
from bertc.serve import config, planning

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def requests_file(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    lines = [{"text": " ".join(["two", "words"][: at % 2 + 1] * (at % 7 + 1))} for at in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the requests that a simulation has."""
    monkeypatch.setattr(planning, "REQUESTS", 200)


def plan(artifact: Path, requests_file: Path, *words: object, **given: object) -> int:
    found = {"requests": requests_file, "rate": 50, "p99": "200ms", "workers": 2} | given
    options = [word for name, value in found.items() for word in (f"--{name}", value)]
    return run([str(word) for word in ("plan-serving", artifact, *options, *words)])


def test_what_plan_serving_writes_is_served(
    artifacts: dict[str, Path], requests_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, plot = tmp_path / "conf" / "serving.toml", tmp_path / "plan.svg"
    out.parent.mkdir()
    artifact = shutil.copytree(artifacts["embedder"], tmp_path / "embedder")  # without the times beside it
    assert plan(artifact, requests_file, "-o", out, "--plot", plot, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["holds"] and told["workers"] == 2 and "<svg" in plot.read_text()
    assert {"none", "cost"} <= {name.split()[0] for name in told["policies"]}
    capacity = told["policies"][told["chosen"]]["capacity"]
    assert capacity >= 0.98 * max(each["capacity"] for each in told["policies"].values())
    written = tomllib.loads(out.read_text())
    assert written["models"]["embedder"]["artifact"].startswith("..") and written["target_ms"] == 200.0
    assert config.read_config(out).policy_of(config.ModelConfig("")).name == told["chosen"].split()[0]
    with served.serving("--config", out, log=tmp_path / "log") as server:
        info = server.get("/info").json()
        assert (info["workers"], info["models"]["embedder"]["policy"]) == (2, told["chosen"].split()[0])
        assert server.post("/embed", {"inputs": "two"}).ok
        assert "measured now" not in server.log.read_text(), "the times that plan-serving measured are those of the server"


def test_a_rate_that_no_policy_serves(artifacts: dict[str, Path], requests_file: Path, capsys: Capture) -> None:
    assert plan(artifacts["embedder"], requests_file, rate=1e6) == 1
    assert "such machines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("p99", "80", "80ms"), ("p99", "fast", "80ms"), ("p99", "0ms", "hour"), ("p99", "nanms", "hour"), ("rate", "0", "rate"),
        ("rate", "-1", "rate"), ("requests", "missing", "missing"), ("workers", "0", "workers"), ("plot", "/", "--plot"),
    ],
)  # fmt: skip
def test_wrong_words(
    artifacts: dict[str, Path], requests_file: Path, option: str, value: str, says: str, capsys: Capture
) -> None:
    assert plan(artifacts["embedder"], requests_file, **{option: value}) == 2
    assert says in capsys.readouterr().err


WRONG = [
    ("prot = 80", "port"), ("port = 'x'", "port"), ("port = 70000", "port"), ("port = -1", "port"), ("workers = -1", "workers"),
    ("workers = 1.5", "workers"), ("threads = true", "threads"), ("host = 3", "host"), ("policy = 'costs'", "cost"),
    ("policy = 1", "policy"), ("max_rows = 0", "max_rows"), ("max_wait_ms = -1", "max_wait_ms"), 
    ("max_wait_ms = nan", "max_wait_ms"),
    ("max_wait_ms = inf", "max_wait_ms"), ("budget = 0", "budget"), ("target_ms = -5", "target_ms"), 
    ("target_ms = nan", "target_ms"),
    ("memory = 8", "memory"), ("memory = 'much'", "8GB"), ("memory = '-8GB'", "8GB"), ("limits = 1", "limits"),
    ("[limits]\nrow = 1", "rows"), ("[limits]\nrows = 0", "rows"), ("[limits]\ndeadline_ms = 0", "deadline_ms"),
    ("[limits]\ndeadline_ms = nan", "deadline_ms"), ("[limits]\ntruncate = 1", "truncate"), ("[limits]\nqueue = 1e9", "queue"),
    ("[models]\nm = 'path'", "m"), ("[models.m]\npolicy = 'none'", "artifact"), ("[models.m]\nartifact = 3", "artifact"),
    ("[models.m]\nartifact = 'a'\npolicy = 'tokenz'", "tokens"), ("[models.m]\nartifact = 'a'\nmax_rows = -1", "max_rows"),
    ("[models.m]\nartifact = 'a'\nbudgets = 1", "budget"), ("[models.'a/b']\nartifact = 'a'", "a/b"),
    ("port 80", "Expected"),
    ("port = 1\nport = 2", "overwrite"), ("[models.m]\nartifact = 'a'\n[models.m]\nartifact = 'b'", "models"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_a_wrong_file_names_the_key(text: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(text)
    assert run(["serve", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said.replace("\n", "").replace("  ", "") or "serving.toml" in said
    assert says in said


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a" * 10_000, b"x = " + b"[" * 5_000])
def test_what_is_no_toml(data: bytes, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "serving.toml"
    path.write_bytes(data)
    assert run(["serve", "--config", str(path)]) == 2
    assert "serving.toml" in capsys.readouterr().err
    assert run(["serve", "--config", str(tmp_path)]) == 2


def test_artifacts_stand_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "serving.toml"
    path.parent.mkdir()
    limits = config.Limits(queue=9)
    made = config.ServingConfig(policy="tokens", limits=limits, models={"m": config.ModelConfig(str(tmp_path / "a"), "none", 4)})
    config.write_config(made, path)
    found = config.read_config(path)
    assert tomllib.loads(path.read_text())["models"]["m"]["artifact"] == "../a"
    assert Path(found.models["m"].artifact).resolve() == tmp_path / "a"
    assert (found.policy, found.limits.queue, found.policy_of(found.models["m"]).max_rows) == ("tokens", 9, 4)


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5kib", 1536), ("123", 123), ("", None)])
def test_memory(text: str, size: int | None) -> None:
    assert config.memory_bytes(text) == size


def test_no_memory() -> None:
    for text in ("GB", "-1", "1e9", "8 TB", "٣GB"):
        with pytest.raises(InputError, match="8GB"):
            config.memory_bytes(text)
