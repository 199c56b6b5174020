"""A disk that is full at a chosen write: calls of the C library that write below a folder are counted, and from the n-th on
they fail with ENOSPC. Python, ONNX Runtime and TensorRT alike go through them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Renames and syncs fail where they are the n-th: a disk that is full lets what is there be renamed back.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long count, failing = -1, swap;
void full_disk_arm(long at) { count = 0; failing = at; swap = 0; }
long full_disk_count(void) { return count; }
long full_disk_swap(void) { return swap; }

__attribute__((constructor)) static void started(void) {
  const char *at = getenv("FULL_DISK_STARTED");
  if (at) failing = atol(at);
}
static int inside(const char *path) {
  const char *folder = getenv("FULL_DISK_FOLDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}
static int fails(int here, int lasting) {
  if (!here) return 0;
  long now = ++count;
  if (failing < 0 || !(now == failing || (lasting && now > failing))) return 0;
  errno = ENOSPC;
  return 1;
}
static int open_on(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return inside(path);
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OF_FD(type, name, lasting, declared, given) \
  type name declared { REAL(name); return fails(open_on(fd), lasting) ? -1 : real given; }
OF_FD(ssize_t, write, 1, (int fd, const void *b, size_t n), (fd, b, n))
OF_FD(ssize_t, writev, 1, (int fd, const struct iovec *v, int n), (fd, v, n))
OF_FD(ssize_t, pwrite, 1, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at))
OF_FD(ssize_t, pwrite64, 1, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at))
OF_FD(int, ftruncate, 1, (int fd, off_t n), (fd, n))
OF_FD(int, ftruncate64, 1, (int fd, off64_t n), (fd, n))
OF_FD(ssize_t, sendfile, 1, (int fd, int from, off_t *at, size_t n), (fd, from, at, n))
OF_FD(ssize_t, sendfile64, 1, (int fd, int from, off64_t *at, size_t n), (fd, from, at, n))
OF_FD(int, fsync, 0, (int fd), (fd))
#define OF_PATH(name, declared, given) \
  int name declared { REAL(name); return fails(inside(path), 1) ? -1 : real given; }
OF_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
int link(const char *from, const char *path) { REAL(link); return fails(inside(path), 1) ? -1 : real(from, path); }
int rename(const char *from, const char *path) { REAL(rename); return fails(inside(path), 0) ? -1 : real(from, path); }
int renameat2(int a, const char *from, int b, const char *path, unsigned flags) {
  REAL(renameat2); return fails(inside(path), 0) ? swap = 1, -1 : real(a, from, b, path, flags);
}
ssize_t copy_file_range(int from, off64_t *a, int fd, off64_t *b, size_t n, unsigned flags) {
  REAL(copy_file_range); return fails(open_on(fd), 1) ? -1 : real(from, a, fd, b, n, flags);
}
#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
#define OPENS(name) int name(const char *path, int flags, ...) { \
  REAL(name); MODE return fails((flags & O_CREAT) && inside(path) && access(path, F_OK), 1) ? -1 : real(path, flags, mode); }
OPENS(open)
OPENS(open64)
"""
# Forks a build for each write: each begins with all that a build loads, and ends alone.
EACH = """
import ctypes, json, os, sys, tempfile
from pathlib import Path
import onnxruntime, scipy.stats, onnxscript
import bertc.pipeline, bertc.cli.build
from bertc.cli import _main as cli
disk, (command, said) = ctypes.CDLL(None), json.loads(sys.argv[1])
tempfile.gettempdir()
for line in sys.stdin:
    read, write = os.pipe()
    if not (pid := os.fork()):
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1); os.dup2(out, 2)
        own, os.environ["FULL_DISK_STARTED"] = line.split()
        disk.full_disk_arm(int(own))
        code = cli.run(command)
        made, swap = disk.full_disk_count(), disk.full_disk_swap()
        disk.full_disk_arm(-1)
        os.write(write, json.dumps([code, made, swap]).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    print(os.read(read, 99).decode() or json.dumps([f"status {status}", 0, 0]), flush=True)
    os.close(read)
"""


def why_not() -> str:
    """'' where it can be had here."""
    if sys.platform != "linux":
        return "writes are counted on Linux alone"
    return "" if shutil.which("gcc") else "writes are counted by a library that gcc makes, and there is no gcc"


class Disk:
    """Runs `bertc WORDS` again and again, each time full from another write below `folder` on."""

    def __init__(self, folder: Path, words: Sequence[str], temporary: Path) -> None:
        """`folder` holds the output and the folder for temporary files, and nothing else that is written."""
        self.swap_failed = False  # in the last run, the exchange of two folders: it has another way, two renames
        work = folder.parent / "full-disk"
        work.mkdir(exist_ok=True)
        self.said, source, library = work / "said", work / "shim.c", work / "shim.so"
        source.write_text(SHIM, encoding="utf-8")
        subprocess.run(["gcc", "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        ctypes.CDLL(str(library))  # OSError here, and not a line on the stderr of every process
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "LD_PRELOAD": str(library), "FULL_DISK_FOLDER": f"{folder}/", "PYTHONPATH": paths}
        environment |= {"TMPDIR": str(temporary)}
        command = [sys.executable, "-c", EACH, json.dumps([list(words), str(self.said)])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]

    def run(self, write: int, compiler: int = -1) -> tuple[int | str, int, str]:
        """(exit code, writes that were tried, what it said) of a run that finds the disk full from that write on; -1 for never.

        `compiler`: from that write on of a process that the build starts.
        """
        self._process.stdin.write(f"{write} {compiler}\n")
        self._process.stdin.flush()
        code, writes, swap = json.loads(self._process.stdout.readline())
        self.swap_failed = bool(swap)
        return code, writes, self.said.read_text("utf-8", "replace")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
