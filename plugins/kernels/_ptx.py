"""Kernels compiled without a GPU: PTX that TensorRT's AOT plugin can start, and what ptxas says of it.

Triton's PTX differs from what TensorRT calls in four ways, each of which is mended or refused here: it has two more parameters
(scratch memory; taken out where nothing reads them), its version may be newer than a driver (pinned by SM), it may name files of
this machine (no line information), and floats are no parameters (constants, see `_launch`). The result is kept by the hash of all
that it is made from.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._launch import BYTES, Example, Launch, Unsupported

# SM -> version of PTX, the oldest that has the instructions: the driver has to know it. 8.0 is CUDA 12.0, 8.6 12.7, 8.7 12.8.
PTX_VERSIONS = {80: 80, 86: 80, 89: 81, 90: 80, 100: 86, 120: 87}
ARCH_ONLY = (90, 100, 120)  # compiled for sm_90a, 100a, 120a: no other SM runs them
FP8_FROM = 89
SCRATCH = 2  # parameters that Triton adds
KINDS = {
    "mma": r"HMMA|IMMA|QMMA|OMMA",
    "wgmma": r"HGMMA|IGMMA|QGMMA",
    "tcgen05": r"UTC\w*MMA",
    "global loads": r"LDG",
    "global stores": r"STG",
    "async copies": r"LDGSTS|UBLKCP|UTMALDG",
    "shared": r"LDS|STS|LDSM|STSM|LDTM|STTM",
    "local": r"LDL|STL",
    "float": r"FFMA\d?|FADD\d?|FMUL\d?|HFMA2|HADD2|HMUL2",
    "special": r"MUFU",
    "barriers": r"BAR|SYNCS|WARPSYNC",
}
TENSOR_CORES = ("mma", "wgmma", "tcgen05")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: the PTX, its cubin (from ptxas, to look at), and how it is started."""

    launch: str
    entry: str
    sm: int
    architecture: str
    ptx_version: str
    ptx: str
    parameters: tuple[str, ...]
    shared: int
    threads: int
    registers: int
    spilled: int  # bytes stored and loaded for want of registers
    stack: int
    instructions: Mapping[str, int]
    triton: str
    key: str
    cubin: bytes = field(default=b"", repr=False)

    @property
    def runs_on(self) -> str:
        """Which GPUs take this PTX."""
        return f"sm{self.sm} only" if self.architecture.endswith("a") else f"sm{self.sm} and newer"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ptx.encode()).hexdigest()


def example_shapes(launch: Launch, example: Example) -> dict[str, tuple[int, ...]]:
    """The shapes of an example, of what is present in it."""
    dims = {**example.dims, **launch.derived(dict(example.dims), launch.attributes_with(example.attributes))}
    there = [t for t in launch.tensors().values() if t.name not in example.absent]
    return {t.name: tuple(dims[dim] for dim in t.shape) for t in there}


def compile_launch(
    launch: Launch,
    sm: int,
    shapes: Mapping[str, Sequence[int]],
    *,
    types: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    variant: int | None = None,
    folder: Path | None = None,
) -> Kernel:
    """One variant of a launch for one SM. Of `shapes` only sizes that are constants count, and which tensors there are."""
    if sm not in PTX_VERSIONS:
        raise Unsupported(f"kernels are compiled for sm{', sm'.join(map(str, PTX_VERSIONS))}, not for sm{sm}")
    types, attributes = types or {}, attributes or {}
    launch.check_present(tuple(shapes))
    dims = launch.dims(shapes, attributes)
    variant = launch.fitting(dims)[0] if variant is None else variant
    constants = launch.constants_of(dims, attributes, variant)
    signature = _signature(launch, tuple(shapes), types, sm)
    key = _key(launch, sm, signature, constants, variant)
    if folder is not None and (found := _read(folder / key)) is not None:
        return found
    kernel = _compile(launch, sm, signature, constants, variant, key)
    if folder is not None:
        _write(folder / key, kernel)
    return kernel


def compile_example(launch: Launch, name: str, sm: int, *, variant: int | None = None, folder: Path | None = None) -> Kernel:
    """An example of a launch."""
    example = launch.examples[name]
    shapes = example_shapes(launch, example)
    return compile_launch(launch, sm, shapes, types=example.types, attributes=example.attributes, variant=variant, folder=folder)


def traffic(launch: Launch, example: Example, variant: int | None = None) -> tuple[int, int]:
    """The bytes that an example reads and writes, and the fewest that any kernel could."""
    shapes = example_shapes(launch, example)
    dims = launch.dims(shapes, example.attributes)
    constants = launch.constants_of(dims, example.attributes, launch.fitting(dims)[0] if variant is None else variant)
    known = launch.tensors()
    size = {t.type: BYTES[launch.type_of(t, example.types)] for t in known.values() if t.type in launch.types}
    return launch.traffic(dims, constants, size | {name: BYTES[launch.type_of(known[name], example.types)] for name in shapes})


def _signature(launch: Launch, present: Sequence[str], types: Mapping[str, str], sm: int) -> dict[str, str]:
    """What Triton is told of each argument; what is absent is a constant, None."""
    tensors = launch.tensors()
    made = dict.fromkeys(launch.entry.arg_names, "constexpr")
    made |= dict.fromkeys(launch.scalars, "i32")
    for name in present:
        word = launch.type_of(tensors[name], types)
        if word == "fp8e4nv" and sm < FP8_FROM:
            raise Unsupported(f"{launch.name}: {name} in float8 needs sm{FP8_FROM} or newer, not sm{sm}; int8 runs on all")
        made[name] = f"*{word}"
    return {name: made[name] for name in launch.entry.arg_names}


def _key(launch: Launch, sm: int, signature: Mapping[str, str], constants: Mapping[str, Any], variant: int) -> str:
    """The hash of all that a kernel is made from. Triton's `cache_key` is of the function and all that it calls."""
    import triton

    if not hasattr(launch.entry, "cache_key"):
        raise Unsupported("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    chosen = launch.variants[variant]
    mending = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    parts = [mending, launch.name, launch.entry.cache_key, triton.__version__, sm, PTX_VERSIONS[sm], signature, constants]
    text = json.dumps([*parts, chosen.options], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _compile(launch: Launch, sm: int, signature: dict[str, str], constants: dict[str, Any], variant: int, key: str) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    chosen = launch.variants[variant]
    absent = {name: None for name, word in signature.items() if word == "constexpr" and name not in constants}
    # TensorRT's and torch's buffers begin at multiples of 256 bytes: wide loads.
    aligned = {(at,): [["tt.divisibility", 16]] for at, word in enumerate(signature.values()) if word.startswith("*")}
    source = ASTSource(launch.entry, signature, constexprs={**constants, **absent}, attrs=aligned)
    options = {**chosen.options, "ptx_version": PTX_VERSIONS[sm], "enable_fp_fusion": True}
    with tempfile.TemporaryDirectory() as scratch, triton.knobs.compilation.scope(), triton.knobs.cache.scope():
        triton.knobs.compilation.disable_line_info = True
        triton.knobs.compilation.always_compile = True
        triton.knobs.cache.dir = scratch
        made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise Unsupported(f"{launch.name}: Triton wants scratch memory in global memory, which TensorRT does not give")
    wanted = ["u64" if word.startswith("*") else "u32" for word in signature.values() if word != "constexpr"]
    ptx, found = strip_scratch(made.asm["ptx"])
    if [_width(kind) for kind in found] != [_width(kind) for kind in wanted]:
        raise Unsupported(f"{launch.name}: the PTX takes {found}, the launch gives {wanted}")
    if paths := re.findall(r"^\s*\.(?:file|loc)\b.*", ptx, re.MULTILINE):
        raise Unsupported(f"{launch.name}: the PTX names files: {paths[0].strip()}")
    report, cubin, sass = _assemble(ptx, sm)
    return Kernel(
        launch=launch.name,
        entry=made.metadata.name,
        sm=sm,
        architecture=_only(r"^\.target (\w+)", ptx),
        ptx_version=_only(r"^\.version (\S+)", ptx),
        ptx=ptx,
        parameters=tuple(found),
        shared=made.metadata.shared,
        threads=32 * made.metadata.num_warps,
        registers=int(_only(r"Used (\d+) registers", report)),
        spilled=sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report))),
        stack=int(_only(r"(\d+) bytes stack frame", report)),
        instructions=count_instructions(sass),
        triton=triton.__version__,
        key=key,
        cubin=cubin,
    )


def strip_scratch(ptx: str, count: int = SCRATCH) -> tuple[str, list[str]]:
    """PTX without its last parameters, which must be pointers that nothing reads; and the types of those that stay."""
    entry = re.search(r"(\.entry \w+\()(.*?)(\n?\))", ptx, re.DOTALL)
    if entry is None:
        raise Unsupported("the PTX has no entry")
    stated = [each.strip() for each in entry[2].split(",\n")]
    types = [_only(r"\.param \.(\w+)", each) for each in stated]
    names = [each.split()[-1] for each in stated]
    body = ptx[entry.end() :]
    read = [name for name in names[-count:] if re.search(rf"\b{re.escape(name)}\b", body)]
    if len(stated) < count or read or any(_width(kind) != 64 for kind in types[-count:]):
        raise Unsupported(f"the last {count} parameters of the PTX are no unused pointers: {stated[-count:]}, read {read}")
    kept = ",\n".join(f"\t{each}" for each in stated[:-count])
    return f"{ptx[: entry.start()]}{entry[1]}\n{kept}\n){body}", types[:-count]


def count_instructions(sass: str) -> dict[str, int]:
    """Machine instructions by kind, and all of them, in the listing of nvdisasm."""
    found = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", sass, re.MULTILINE)
    codes = Counter(code for code in found if code != "NOP")
    made = {kind: sum(n for code, n in codes.items() if re.fullmatch(pattern, code)) for kind, pattern in KINDS.items()}
    return {**made, "all": codes.total()}


def _assemble(ptx: str, sm: int) -> tuple[str, bytes, str]:
    """What ptxas says, the cubin, and its listing; with the flags that Triton gives."""
    import triton

    tool = triton.knobs.nvidia.ptxas_blackwell if sm in ARCH_ONLY else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "kernel.ptx").write_text(ptx, "utf-8")
        name = f"sm_{sm}{'a' * (sm in ARCH_ONLY)}"
        flags = ["-v", "--regAllocOptLevel=2", f"--gpu-name={name}"]
        report = _ran([tool.path, *flags, "kernel.ptx", "-o", "kernel.cubin"], scratch)
        sass = _ran([triton.knobs.nvidia.nvdisasm.path, "-c", "kernel.cubin"], scratch)
        return report, (Path(scratch) / "kernel.cubin").read_bytes(), sass


def _ran(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unsupported(
            f"{Path(command[0]).name} refused a kernel (exit {done.returncode}): {(done.stderr or done.stdout)[-500:]}"
        )
    return done.stdout + done.stderr


def _only(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise Unsupported(f"expected {pattern!r} in {text[:200]!r}")
    return found[1]


def _width(kind: str) -> int:
    return int(kind[1:])


def _read(folder: Path) -> Kernel | None:
    """A kernel that was kept whole; it is compiled again where a file is missing, damaged, or not written to its end."""
    try:
        stated = json.loads((folder / "kernel.json").read_text("utf-8"))
        ptx, cubin = (folder / "kernel.ptx").read_text("utf-8"), (folder / "kernel.cubin").read_bytes()
        if stated.pop("sha256") != [hashlib.sha256(each).hexdigest() for each in (ptx.encode(), cubin)]:
            return None
        return Kernel(**{**stated, "parameters": tuple(stated["parameters"])}, ptx=ptx, cubin=cubin)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(folder: Path, kernel: Kernel) -> None:
    stated = {name: value for name, value in asdict(kernel).items() if name not in ("ptx", "cubin")}
    stated["sha256"] = [kernel.sha256, hashlib.sha256(kernel.cubin).hexdigest()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.ptx").write_text(kernel.ptx, "utf-8")
    (folder / "kernel.cubin").write_bytes(kernel.cubin)
    (folder / "kernel.json").write_text(json.dumps(stated, indent=1), "utf-8")
