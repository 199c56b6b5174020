"""The process that compiles one engine: `python -m bertc.targets._tensorrt.worker job.json`.

One process an engine, because a failed build changes the next one in the same process, and because a builder that aborts must not
take its caller along. Reads a job, writes the engine, the builder's log (as it comes, so that it survives a crash) and a result.

    job     {"module", "graph", "plan", "log", "result", "parent", "sms": ["sm89"], "workspace": bytes or null,
             "timing_cache": file or null,
             "profiles": [{input: [min shape, opt shape, max shape]}],
             "plugins": [{"launch", "present"}] of kernels of ours, "sm" of this machine's GPU}
    result  {"stage": "import" | "parse" | "config" | "build" | "done", "errors": [...], "version",
             and when done: "tf32", "sha256", "nbytes", "seconds", "notes": [what became of a timing cache that is no use]}
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ...core import die_with_parent

# Attributes of TensorRT-RTX that TensorRT does not have; used only when a job names SMs, which only TensorRT-RTX takes.
RTX_ONLY = frozenset(
    {
        ("", "ComputeCapability"),
        ("ComputeCapability", "__members__"),
        ("IBuilderConfig", "num_compute_capabilities"),
        ("IBuilderConfig", "set_compute_capability"),
    }
)


NO_ROOM = 28  # the exit code that says that the disk is full
MOST_CACHE = 256 * 2**20  # bytes of a timing cache: those of many large models have a few MiB


class Refused(Exception):
    """The compiler refused: the stage, and its errors, each {"node", "op", "message"}."""

    def __init__(self, stage: str, errors: list[dict[str, str]]) -> None:
        super().__init__(stage)
        self.stage = stage
        self.errors = errors


def main(job_path: str) -> None:
    """Run the job in a file; a refusal is a result, only a crash is an exit code."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    die_with_parent(job["parent"])
    try:
        Path(job["result"]).write_text(json.dumps(_run(job)), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            os._exit(NO_ROOM)  # at once: a log that cannot be flushed would say so in its place
        raise


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    version = ""
    try:
        trt = _import(job["module"])
        version = str(trt.__version__)
        return {"stage": "done", "errors": [], "version": version, **compile_job(trt, job)}
    except Refused as refused:
        return {"stage": refused.stage, "errors": refused.errors, "version": version}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Refused("import", [_error(f"{type(error).__name__}: {error}")]) from error


def _error(message: str, node: str = "", op: str = "") -> dict[str, str]:
    return {"node": node, "op": op, "message": message}


def compile_job(trt: Any, job: Mapping[str, Any]) -> dict[str, Any]:
    """Parse, configure, build, write. `trt` is the module `tensorrt` or `tensorrt_rtx`. Raises Refused."""
    with Path(job["log"]).open("w", encoding="utf-8", errors="replace") as file:
        logger, errors = _logger(trt, file)
        builder = trt.Builder(logger)
        plugins = register_plugins(importlib.import_module(f"{job['module']}.plugin"), job) if job["plugins"] else []
        network = builder.create_network(_flags(trt, bool(plugins)))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(job["graph"])):
            raise Refused("parse", _parser_errors(parser) or [_error(m) for m in errors])
        notes: list[str] = []
        config = _config(trt, builder, network, job, notes)
        started = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - started
        if plan is None:
            raise Refused("build", [_error(m) for m in errors] or [_error("the builder gave no engine and no message")])
        if job["timing_cache"]:
            _keep_timings(config, Path(job["timing_cache"]), notes)
        if not logger.listed_layers:
            file.write(_inspect(trt, logger, plan))
    view = memoryview(plan)
    Path(job["plan"]).write_bytes(view)
    return {
        "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
        "sha256": hashlib.sha256(view).hexdigest(),
        "nbytes": view.nbytes,
        "plugins": plugins,
        "seconds": round(seconds, 3),
        "notes": list(dict.fromkeys(notes)),
    }


def _logger(trt: Any, file: TextIO) -> tuple[Any, list[str]]:
    """A logger that writes every message to a file at once, and the list its errors gather in."""
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listed_layers = False

        def log(self, severity: Any, message: str) -> None:
            self.listed_layers = self.listed_layers or ", LayerType: " in message
            file.write(f"[{severity.name}] {message}\n")
            file.flush()
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(message)

    return Log(), errors


def _inspect(trt: Any, logger: Any, plan: Any) -> str:
    """The layers of an engine in the words of its inspector, for a builder that does not print them; needs the GPU it is for."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    lines = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)
    return f"\n{lines}\n"


def _flags(trt: Any, plugins: bool = False) -> int:
    """Strongly typed: needed on TensorRT 10, the only kind on 11, where the flag may vanish. Plugins with their code inside."""
    flags = trt.NetworkDefinitionCreationFlag
    wanted = ["STRONGLY_TYPED", *(["PREFER_AOT_PYTHON_PLUGINS"] if plugins else [])]
    return sum(1 << int(getattr(flags, name)) for name in wanted if hasattr(flags, name))


def register_plugins(trtp: Any, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tell TensorRT (`trtp` is its module `plugin`) of the kernels of a graph; what the manifest says of each. Raises Refused."""
    import inspect
    from importlib.metadata import version

    from bertc.plugins.kernels import launches
    from bertc.plugins.kernels._tensorrt import Plugin

    if not job["sm"]:
        raise Refused("config", [_error("kernels of ours are compiled for the SM of the GPU, and none was found")])
    made = []
    for each in job["plugins"]:
        launch = launches()[each["launch"]]
        plugin = Plugin(launch, each["present"], int(str(job["sm"]).removeprefix("sm")))
        plugin.register(trtp)
        source = Path(inspect.getfile(launch.entry.fn)).read_bytes()
        facts = {"operator": launch.name, "plugin": plugin.id, "sm": job["sm"], "triton": version("triton")}
        made.append({**facts, "source_sha256": hashlib.sha256(source).hexdigest()})
    return made


def _parser_errors(parser: Any) -> list[dict[str, str]]:
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    return [_error(e.desc(), e.node_name(), e.node_operator()) for e in found]


def _config(trt: Any, builder: Any, network: Any, job: Mapping[str, Any], notes: list[str]) -> Any:
    config = builder.create_builder_config()
    # On by default, and it silently rounds float32 GEMMs to 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The kernel list is printed with node names only at this verbosity.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Auxiliary streams add waits between kernels and memory; an encoder is one chain.
    config.max_aux_streams = 0
    if job["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"])
    if job["timing_cache"]:
        _read_timings(config, Path(job["timing_cache"]), notes)
    if job["sms"]:
        _set_sms(trt, config, job["sms"])
    for profile in job["profiles"]:
        _add_profile(builder, network, config, profile)
    return config


def _read_timings(config: Any, path: Path, notes: list[str]) -> None:
    """Kernels timed before on this GPU model and version are not timed again: it is faster, and the choice the same.

    The file lies in a store that others may write to. One that is no use is left alone, with a note: timings are made anew.
    """
    if not config.set_timing_cache(_cache_of(config, path, notes), ignore_mismatch=False):
        notes.append(f"{path} was not used: the builder refused it as another GPU's or version's; kernels were timed anew")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _cache_of(config: Any, path: Path, notes: list[str]) -> Any:
    """The timing cache in a file; an empty one where there is none, or what lies there cannot be one."""
    why = _why_no_cache(path)
    if why == "":
        try:
            found = config.create_timing_cache(path.read_bytes())
            if found is not None:
                return found
            why = "the builder cannot read it"
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            why = str(error)
    if why is not None:
        notes.append(f"{path} was not used: {why}; kernels were timed anew")
    return config.create_timing_cache(b"")


def _why_no_cache(path: Path) -> str | None:
    """Why a file is no timing cache of ours, before the builder reads it; "" where it may be one, None where there is none."""
    if path.is_symlink():
        return "it is a link"
    if not path.exists():
        return None
    if not path.is_file():
        return "it is no file"
    size = path.stat().st_size
    return f"it has {size / 2**20:.0f} MiB, more than {MOST_CACHE // 2**20}" if size > MOST_CACHE else ""


def _keep_timings(config: Any, path: Path, notes: list[str]) -> None:
    """Add what was timed to the file; another build may have added to it meanwhile. The engine is built: nothing here fails."""
    import filelock

    try:
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            ours = config.get_timing_cache()
            if _why_no_cache(path) == "" and not ours.combine(_cache_of(config, path, notes), ignore_mismatch=False):
                notes.append(f"{path} was replaced: it cannot be joined with the timings of this build")
            beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            with beside.open("xb") as file:  # new, and no link that someone left there
                file.write(memoryview(ours.serialize()))
            beside.replace(path)
    except (OSError, RuntimeError) as error:
        notes.append(f"{path} was not written ({error}): the next build times its kernels again")


def _set_sms(trt: Any, config: Any, sms: list[str]) -> None:
    known = trt.ComputeCapability.__members__
    unknown = [sm for sm in sms if sm.upper() not in known]
    if unknown:
        raise Refused("config", [_error(f"this version has no {', '.join(unknown)}; it builds for {', '.join(known).lower()}")])
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        if not config.set_compute_capability(known[sm.upper()], index):
            raise Refused("config", [_error(f"the builder refused {sm} as target {index} of {', '.join(sms)}")])


def _add_profile(builder: Any, network: Any, config: Any, shapes: Mapping[str, list[list[int]]]) -> None:
    """Dynamic inputs take their shapes; inputs of fixed shape need none."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [t.name for t in tensors if -1 in tuple(t.shape)]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name in dynamic:
        profile.set_shape(name, *(tuple(shape) for shape in shapes[name]))
    if config.add_optimization_profile(profile) < 0:
        raise Refused("config", [_error(f"the builder refused the profile {json.dumps({n: shapes[n] for n in dynamic})}")])


if __name__ == "__main__":
    main(sys.argv[1])
