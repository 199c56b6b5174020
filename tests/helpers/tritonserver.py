"""A real tritonserver, of the wheel nvidia-pytriton in a folder of its own ($BERTC_TRITON): CPU, Python backend alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    http: str
    grpc: str
    log: Path
    process: subprocess.Popen[bytes]


def home() -> Path | None:
    """The folder of `pip install --target FOLDER nvidia-pytriton`."""
    given = os.environ.get("BERTC_TRITON")
    return Path(given).resolve() if given else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python_home(folder: Path, numpy_1: bool) -> Path:
    """A virtual environment with the packages of this one; `numpy_1`: its numpy is that of the server's wheel, which fits."""
    made = folder / "python"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(made)
    site = next(made.glob("lib/python*/site-packages"))
    where = home()
    if numpy_1 and where is not None:
        for name in ("numpy", "numpy.libs"):
            (site / name).symlink_to(where / name, target_is_directory=True)
    lines = [f"import site; site.addsitedir({path!r})" for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(lines) + "\n", "utf-8")
    return made


@contextlib.contextmanager
def serving(repository: Path, folder: Path, *options: str, ready: bool = True, numpy_1: bool = True) -> Iterator[Running]:
    """A server of a repository on the loopback; without `ready` it is not waited for until all models are."""
    where = home()
    assert where is not None
    root = where / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(root / "backends", backends)
    stub = backends / "python" / "triton_python_backend_stub"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copyfile(root / "python_backend_stubs" / version / stub.name, stub)
    program = folder / "tritonserver"
    shutil.copyfile(root / "bin" / "tritonserver", program)
    for file in (stub, program):
        file.chmod(0o755)
    ports = free_port(), free_port()
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{where / 'nvidia_pytriton.libs'}",
        # Its Python is isolated, and looks for packages where the first python3 of the PATH does.
        "PATH": f"{python_home(folder, numpy_1) / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(program), f"--model-repository={repository}", f"--backend-directory={backends}", "--allow-metrics=false"]
    command += ["--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"]
    log = folder / "tritonserver.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=subprocess.STDOUT, env=environment)
    running = Running(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", log, process)
    try:
        _wait(running, "ready" if ready else "live")
        yield running
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(running: Running, what: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert running.process.poll() is None, running.log.read_text("utf-8", "replace")[-30000:]
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://{running.http}/v2/health/{what}", timeout=2),
        ):
            return
        time.sleep(0.2)
    raise AssertionError(f"not {what} within 180 s:\n{running.log.read_text('utf-8', 'replace')[-30000:]}")
