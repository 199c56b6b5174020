"""Stand-ins for the CUDA libraries that onnxruntime-gpu links, so that it makes CUDA sessions on a machine without a GPU.

Device memory is host memory and a kernel launch does nothing: a session can be made and its partition read (`placement`), what it
computes is garbage. For tests and `make placement`, in a process of their own; nothing of the package `bertc` reaches this file.

The functions are those that the provider libraries need and do not have (`nm`), under the version that they ask for.
"""

from __future__ import annotations

import mmap
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PROVIDERS = ("cuda", "tensorrt")
# Which of the libraries that the providers name are made; the others are of the system.
LIBRARIES = frozenset("libcudart libcublas libcublasLt libcurand libcufft libcudnn libcuda libnvinfer libnvonnxparser".split())

HEAD = """
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
static int sm(void) { const char* given = getenv("STANDIN_SM"); return given ? atoi(given) : 90; }
static void* standin_nothing(void) { return 0; }
static int take(void** p, size_t n) { *p = malloc(n ? n : 1); return *p ? 0 : 2; }
"""

# One function a paragraph. cudaDeviceProp of CUDA 13, as far as it is read: offsets of the fields in bytes.
SPECIAL = r"""
int cudaGetDeviceCount(int* n) { *n = 1; return 0; }

int cudaGetDevice(int* n) { *n = 0; return 0; }

int cudaSetDevice(int n) { return 0; }

int cudaDriverGetVersion(int* v) { *v = 13000; return 0; }

int cudaRuntimeGetVersion(int* v) { *v = 13000; return 0; }

int cudaGetDeviceProperties(char* p, int device) {
  memset(p, 0, 700);
  strcpy(p, "stand-in");
  *(size_t*)(p + 288) = 80ull << 30;  /* totalGlobalMem */
  *(size_t*)(p + 296) = 49152;        /* sharedMemPerBlock */
  *(int*)(p + 304) = 65536;           /* regsPerBlock */
  *(int*)(p + 308) = 32;              /* warpSize */
  *(int*)(p + 320) = 1024;            /* maxThreadsPerBlock */
  for (int i = 0; i < 3; i++) { *(int*)(p + 324 + 4 * i) = 1024; *(int*)(p + 336 + 4 * i) = 65535; }
  *(size_t*)(p + 352) = 65536;        /* totalConstMem */
  *(int*)(p + 360) = sm() / 10;
  *(int*)(p + 364) = sm() % 10;
  *(int*)(p + 384) = 132;             /* multiProcessorCount */
  return 0;
}

int cudaDeviceGetAttribute(int* v, int which, int device) {
  *v = which == 75 ? sm() / 10 : which == 76 ? sm() % 10 : which == 16 ? 132 : which == 10 ? 32 : which == 97 ? 232448 : 1;
  return 0;
}

int cudaMalloc(void** p, size_t n) { return take(p, n); }

int cudaMallocHost(void** p, size_t n) { return take(p, n); }

int cudaHostAlloc(void** p, size_t n, unsigned flags) { return take(p, n); }

int cudaMallocFromPoolAsync(void** p, size_t n, void* pool, void* stream) { return take(p, n); }

int cudaFree(void* p) { free(p); return 0; }

int cudaFreeHost(void* p) { free(p); return 0; }

int cudaFreeAsync(void* p, void* stream) { free(p); return 0; }

int cudaMemGetInfo(size_t* f, size_t* t) { *f = *t = 80ull << 30; return 0; }

int cudaMemcpy(void* d, const void* s, size_t n, int kind) { memmove(d, s, n); return 0; }

int cudaMemcpyAsync(void* d, const void* s, size_t n, int kind, void* stream) { memmove(d, s, n); return 0; }

int cudaMemset(void* d, int v, size_t n) { memset(d, v, n); return 0; }

int cudaMemsetAsync(void* d, int v, size_t n, void* stream) { memset(d, v, n); return 0; }

int cudaStreamCreate(void** s) { *s = (void*)0x1000; return 0; }

int cudaStreamCreateWithFlags(void** s, unsigned flags) { *s = (void*)0x1000; return 0; }

int cudaStreamIsCapturing(void* s, int* status) { *status = 0; return 0; }

int cudaStreamEndCapture(void* s, void** graph) { *graph = (void*)0x1000; return 0; }

int cudaGraphInstantiate(void** exec, void* graph, unsigned long long flags) { *exec = (void*)0x1000; return 0; }

int cudaEventCreate(void** e) { *e = (void*)0x1000; return 0; }

int cudaEventCreateWithFlags(void** e, unsigned flags) { *e = (void*)0x1000; return 0; }

int cudaEventElapsedTime(float* ms, void* a, void* b) { *ms = 1; return 0; }

int cudaMemPoolCreate(void** pool, void* props) { *pool = (void*)0x1000; return 0; }

int cudaMemPoolGetAttribute(void* pool, int which, void* v) { *(uint64_t*)v = 0; return 0; }

int cudaPointerGetAttributes(char* a, const void* p) {
  memset(a, 0, 24);
  *(int*)a = 2;
  *(void**)(a + 8) = *(void**)(a + 16) = (void*)p;
  return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, void* f, int size, size_t bytes, unsigned flags) {
  *n = 1;
  return 0;
}

int cudaFuncGetAttributes(char* a, void* f) { memset(a, 0, 64); *(int*)(a + 24) = 1024; return 0; }

const char* cudaGetErrorName(int e) { return "stand-in"; }

const char* cudaGetErrorString(int e) { return "stand-in"; }

void** __cudaRegisterFatBinary(void* f) { static void* handle[64]; return handle; }

unsigned __cudaPushCallConfiguration(void) { return 0; }

int __cudaPopCallConfiguration(int* grid, int* block, size_t* shared, void** stream) {
  for (int i = 0; i < 3; i++) grid[i] = block[i] = 1;
  *shared = 0; *stream = 0; return 0;
}

size_t cudnnGetVersion(void) { return 91000; }

size_t cudnnGetCudartVersion(void) { return 13000; }

int cudnnGetReductionWorkspaceSize(void* h, void* r, void* a, void* b, size_t* n) { *n = 0; return 0; }

int cudnnGetReductionIndicesSize(void* h, void* r, void* a, void* b, size_t* n) { *n = 0; return 0; }

int getInferLibVersion(void) { return 101000; }

void* getPluginRegistry(void) {
  /* An object whose every method gives 0: no plugin. */
  static void* methods[256]; static void** object[64]; static int zero;
  for (int i = 0; i < 256; i++) methods[i] = (void*)standin_nothing;
  object[0] = methods;
  return object;
}
"""


def make(capi: Path, folder: Path) -> Path:
    """Write the libraries into a folder, for LD_LIBRARY_PATH. Raises RuntimeError where gcc or nm is not there, or gcc fails."""
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"stand-ins of the CUDA libraries are compiled, and {tool} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    providers = [capi / f"libonnxruntime_providers_{name}.so" for name in PROVIDERS]
    for library, functions in sorted(_wanted([each for each in providers if each.is_file()]).items()):
        _compile(folder, library, functions)
    return folder


def _wanted(providers: Sequence[Path]) -> Mapping[str, dict[str, bool]]:
    """Library -> the functions that the providers take from it, with whether they ask for a version."""
    found: dict[str, dict[str, bool]] = {}
    loose: set[str] = set()
    for provider in providers:
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-dW", provider))
        ours = [name for name in needed if name.split(".")[0] in LIBRARIES]
        found |= {name: {} for name in ours if name not in found}
        for symbol in _output("nm", "-D", "--undefined-only", provider).split():
            name, _, library = symbol.partition("@")
            if library in found:
                found[library][name] = True
            elif not library and re.match(r"cu[A-Z]|create\w+_INTERNAL$|getPluginRegistry|getInferLibVersion", name):
                loose.add(name)
    for name in _asked_by_name(providers):
        found.setdefault("libcudnn.so.9", {}).setdefault(name, False)
    for name in loose:  # without a version the first library that has it is taken
        kind = "libcuda." if name.startswith("cu") else "libnvonnxparser." if "Parser" in name else "libnvinfer."
        library = next((each for each in found if each.startswith(kind)), None)
        found.setdefault(library or f"{kind}so.1", {})[name] = False
    return found


def _asked_by_name(providers: Sequence[Path]) -> set[str]:
    """The functions of cuDNN, which is loaded when the first of them is called: their names are strings in the library."""
    found: set[bytes] = set()
    for provider in providers:
        with provider.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found.update(re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", data))
    return {name.decode() for name in found}


def _output(*command: object) -> str:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=True).stdout


def _compile(folder: Path, library: str, functions: Mapping[str, bool]) -> None:
    special = {text.split("(")[0].split()[-1].lstrip("*"): text for text in SPECIAL.strip().split("\n\n")}
    lines = [HEAD]
    for name in functions:
        if name in special:
            lines.append(special[name])
        elif re.search(r"GetStatus(Name|String)$", name):
            lines.append(f'const char* {name}(int status) {{ return "stand-in"; }}')
        elif re.search(r"(Create|Create_v2|^cudnnCreate\w+)$", name) and library.startswith(
            ("libcublas", "libcudnn", "libcurand", "libcufft")
        ):
            lines.append(f"int {name}(void** handle) {{ *handle = (void*)0x1000; return 0; }}")
        else:
            lines.append(f"void* {name}(void) {{ return 0; }}")
    source = folder / f"{library}.c"
    source.write_text("\n".join([*lines, "int standin;"]), "utf-8")
    versions = folder / f"{library}.map"
    versions.write_text(f"{library} {{ global: *; }};\n", "utf-8")
    versioned = [f"-Wl,--version-script={versions}"] if any(functions.values()) else []
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", str(source), "-o", str(folder / library), f"-Wl,-soname,{library}"]
    made = subprocess.run([*command, *versioned], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"gcc does not compile the stand-in of {library}: {made.stderr.strip()}")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
