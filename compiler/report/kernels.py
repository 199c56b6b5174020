"""What the kernels of `bertc.plugins.kernels` became on each SM: registers, spills, tensor cores, bytes moved."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import BuildFailed, InputError, Missing, did_you_mean
from .layout import Table

if TYPE_CHECKING:
    from ..core import Advance

TENSOR_CORES = ("mma", "wgmma", "tcgen05")
Rows = list[dict[str, Any]]


def cache_folder() -> Path:
    """Where compiled kernels are kept, by the hash of all that they are made from."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertc" / "kernels"


def compile_all(names: Sequence[str], sms: Sequence[str], folder: Path, advance: Advance = lambda done, total: None) -> Rows:
    """A row for each example of the named launches (all without) and each SM; one that cannot be has its reason.

    In processes of their own: Triton compiles on one core, and complains at the end of a process that froze its objects.
    """
    if find_spec("triton") is None:
        raise Missing("kernels are compiled by triton, which is not installed: pip install 'bertc[kernels]' (Linux; 1 GB)")
    _make(folder)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _begin) as pool:
        known, known_sms = pool.submit(_known).result()
        _check(names, known, "kernel")
        _check(sms, known_sms, "SM")
        wanted = [
            (name, example, sm)
            for name in dict.fromkeys(names or known)
            for example in known[name]
            for sm in dict.fromkeys(sms or known_sms)
        ]
        jobs = [pool.submit(_row, *each, folder) for each in wanted]
        try:
            for done, job in enumerate(as_completed(jobs)):
                job.result()
                advance(done + 1, len(wanted))
        except BrokenProcessPool as error:
            raise BuildFailed("a process that compiles kernels was ended from outside, for memory perhaps; try again") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [job.result() for job in jobs]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"compiled kernels cannot be kept in {folder}: {error.strerror}; name another folder (--cache)"
        ) from error


def _check(given: Sequence[str], known: Iterable[str], what: str) -> None:
    for each in given:
        if each not in known:
            raise InputError(f"unknown {what} {each!r}{did_you_mean(each, known)}")


def _begin() -> None:
    """Compiled, whatever tests of this user ask for."""
    os.environ.pop("TRITON_INTERPRET", None)


def _known() -> tuple[dict[str, list[str]], list[str]]:
    """The examples of each launch, and the SMs."""
    from bertc.plugins.kernels import _ptx, launches

    return {name: list(launch.examples) for name, launch in launches().items()}, [f"sm{sm}" for sm in _ptx.PTX_VERSIONS]


def _row(name: str, example_name: str, sm: str, folder: Path) -> dict[str, Any]:
    from bertc.plugins.kernels import _launch, _ptx, launches

    launch = launches()[name]
    row: dict[str, Any] = {"kernel": name, "example": example_name, "sm": sm}
    example = launch.examples[example_name]
    try:
        kernel = _ptx.compile_example(launch, example_name, int(sm[2:]), folder=folder)
    except _launch.Unsupported as refused:
        return {**row, "refused": str(refused)}
    moved, least = _ptx.traffic(launch, example)
    stated = ("entry", "architecture", "ptx_version", "runs_on", "registers", "shared", "threads", "spilled", "stack")
    return {
        **row,
        "dims": dict(example.dims),
        **{each: getattr(kernel, each) for each in stated},
        "instructions": dict(kernel.instructions),
        "bytes_moved": moved,
        "bytes_least": least,
        "triton": kernel.triton,
        "sha256": kernel.sha256,
        "key": kernel.key,
    }


def table(rows: Iterable[dict[str, Any]]) -> Table:
    """One row a kernel and SM; what could not be compiled is in `refusals`."""
    columns = ("kernel", "sm", "registers", "shared", "spilled", "tensor cores", "instructions", "bytes moved / least", "runs on")
    shown = Table(*columns, drop=("instructions", "runs on", "bytes moved / least"))
    for row in rows:
        if "refused" not in row:
            counts = row["instructions"]
            cores = ", ".join(f"{counts[kind]} {kind}" for kind in TENSOR_CORES if counts[kind]) or "none"
            moved = f"{row['bytes_moved'] / 1e6:.1f} MB / {row['bytes_least'] / 1e6:.1f} MB"
            numbers = (str(row[each]) for each in ("registers", "shared", "spilled"))
            name = f"{row['kernel']} {row['example']}".strip()
            shown.add(name, row["sm"], *numbers, cores, str(counts["all"]), moved, row["runs_on"])
    return shown


def refusals(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What is not there, one line a reason."""
    return list(dict.fromkeys(row["refused"] for row in rows if "refused" in row))


def spills(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A kernel that spills registers is a fault."""
    return [
        f"{row['kernel']} {row['example']} on {row['sm']} spills {row['spilled']} bytes of registers"
        for row in rows
        if row.get("spilled")
    ]
