"""Hugging Face hub ids: the local cache first where there is no network, the resolved commit always."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..core import Missing, SourceError
from ..graph import external_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
# No patterns for TensorFlow, Flax, OpenVINO and ready-made ONNX copies of the weights: `fetch_onnx` is for what has nothing else.
WANTED = ("*.json", "*.txt", "*.model", "model*.safetensors", "adapter_model.safetensors", "[0-9]*_*/*.safetensors")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "[0-9]*_*/pytorch_model.bin")
CODE = ("*.py",)


def is_hub_id(reference: str) -> bool:
    """Whether a reference has the form `name` or `org/name`."""
    return HUB_ID.fullmatch(reference) is not None and ".." not in reference and "--" not in reference


def fetch_model(reference: str, revision: str | None, allow_pickle: bool, trust_remote_code: bool) -> tuple[Path, str]:
    """The local folder of a hub model and its commit. Downloads what is needed; works from the cache when offline.

    Raises Missing when the model is not in the cache and the hub cannot be reached, SourceError when the hub does not
    have it, keeps it behind an agreement, or has no such revision.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise Missing("hub ids need huggingface_hub; pip install 'bertc[export]', or give a local directory") from error
    from huggingface_hub import errors

    patterns = [*WANTED, *(PICKLES if allow_pickle else ()), *(CODE if trust_remote_code else ())]
    asked = f"{reference!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        with _no_progress():
            folder = Path(hub.snapshot_download(reference, revision=revision, allow_patterns=patterns))
    except (errors.GatedRepoError, errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise SourceError(f"hub model {asked}: {_first_line(error)}; check the name, the revision and your hub login") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{asked} is not a hub id: {_first_line(error)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise Missing(f"cannot write the cache of hub models, {hub.constants.HF_HUB_CACHE}: {error}; set HF_HOME") from error
        raise Missing(
            f"{asked} is not a local path, and as a hub id it is not in the cache ({hub.constants.HF_HUB_CACHE}) and the hub "
            f"cannot be reached ({_reason(error)}); download it where there is a network (hf download {reference}) and copy "
            "the folder here, or give a local directory"
        ) from error
    return folder, folder.name


def fetch_onnx(reference: str, commit: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """Of a repository without other weights, the .onnx file that `choose` names of its files, and that file's external data.

    Nothing where the hub cannot be reached (then the cache is all there is) and where there are other weights, be it pickles that
    were not asked for. Raises what `choose` raises, Missing where the download fails.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    # The first base is of the HTTP library, which is another by version.
    unreached = tuple(base for base in (*errors.HfHubHTTPError.__bases__, OSError) if issubclass(base, Exception))
    try:
        names = hub.HfApi().list_repo_files(reference, revision=commit)
    except unreached:
        return
    weights = [pattern for pattern in (*WANTED, *PICKLES) if pattern.endswith((".safetensors", ".bin"))]
    if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in weights):
        return
    for name in choose(names):
        folder = _more(reference, commit, [name])
        beside = [(PurePosixPath(name).parent / other).as_posix() for other in external_files(folder / name)]
        if beside:
            _more(reference, commit, beside)


def _more(reference: str, commit: str, names: Sequence[str]) -> Path:
    import huggingface_hub as hub

    try:
        with _no_progress():
            found = hub.snapshot_download(reference, revision=commit, allow_patterns=[glob.escape(name) for name in names])
    except OSError as error:
        raise Missing(f"{', '.join(names)} of the hub model {reference!r} cannot be downloaded: {_reason(error)}") from error
    return Path(found)


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()


def _reason(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return _first_line(root)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
