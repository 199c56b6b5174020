"""Readers of evaluation data, one per kind of file. Called through `data.from_file`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import ArtifactError, DataError, Dim, Missing, TensorSpec, derived, is_mask, require
from . import tables
from .image_settings import prepares_images
from .mel import mel_feeds
from .model_files import Extractor
from .npz import read_npz
from .samples import Data, Layout, Sample, dead_rows
from .tables import Row
from .text_settings import read_config

if TYPE_CHECKING:
    from .labels import Labels
    from .tokenizer import Encoded, Encoder


AUDIO_FILES = ("processor_config.json", "preprocessor_config.json")
RAW_AUDIO = "Wav2Vec2FeatureExtractor"  # of wav2vec 2.0, HuBERT, WavLM, UniSpeech, SEW and data2vec


@dataclasses.dataclass(frozen=True)
class Audio:
    """What a feature extractor's settings say of raw audio: the sampling rate in Hz, normalisation, padding, and the mask.

    `masked`: the model has a mask over samples. Without one the feature extractor of transformers normalises the padded row.
    `kind` is the class of another feature extractor, of mel frames: it is run itself, from `files`; the rate alone is read here.
    """

    sampling_rate: int
    normalize: bool = False
    padding_side: str = "right"
    padding_value: float = 0.0
    masked: bool = False
    kind: str = RAW_AUDIO
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """Whether samples are what the model takes."""
        return self.kind == RAW_AUDIO

    @staticmethod
    def from_directory(path: Path) -> Audio:
        """As `from_files`, of the files in a directory."""
        return Audio.from_files({name: Path(path) / name for name in AUDIO_FILES if (Path(path) / name).is_file()}, Path(path))

    @staticmethod
    def from_files(files: Mapping[str, Path], folder: Path | str = "the model's files") -> Audio:
        """Raises ArtifactError when the settings are missing or broken."""
        file, config = audio_settings(files)
        if file is None:
            raise ArtifactError(f"no {AUDIO_FILES[1]} in {folder}; copy it from the source model")
        kind = config.get("feature_extractor_type") or RAW_AUDIO
        if kind == RAW_AUDIO and config.get("feature_size", 1) != 1:
            raise ArtifactError(f"{file}: {kind} makes {config.get('feature_size', 1)} features per frame; give .npz data")
        if "sampling_rate" not in config:
            raise ArtifactError(f"{file} has no sampling_rate; copy it from the source model")
        # What the file leaves out is as in the class.
        return Audio(
            config["sampling_rate"],
            bool(config.get("do_normalize", True)),
            config.get("padding_side", "right"),
            float(config.get("padding_value", 0.0)),
            bool(config.get("return_attention_mask")),
            kind,
            {} if kind == RAW_AUDIO else {name: path for name, path in files.items() if name in AUDIO_FILES},
        )


def audio_settings(files: Mapping[str, Path]) -> tuple[Path | None, dict[str, Any]]:
    """(the file, the feature extractor's settings in it); transformers 5 nests them in processor_config.json, which goes first.

    None where no file has any; those of images are none of recordings.
    """
    nested = read_config(files[AUDIO_FILES[0]]) if AUDIO_FILES[0] in files else {}
    found = nested.get("feature_extractor", nested.get("audio_processor"))
    if isinstance(found, dict) and not prepares_images(found):
        return files[AUDIO_FILES[0]], _extractor(found, files[AUDIO_FILES[0]])
    own = read_config(files[AUDIO_FILES[1]]) if AUDIO_FILES[1] in files else {}
    if AUDIO_FILES[1] not in files or prepares_images(own):
        return None, {}
    return files[AUDIO_FILES[1]], _extractor(own, files[AUDIO_FILES[1]])


def _extractor(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    require(settings, Extractor, where=str(file), advice="copy it again from the source model", error=ArtifactError)
    return settings


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """What a model takes: its inputs, the ranges of its named dimensions, and the batch asked for."""

    inputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    batch: int

    def limits(self, dim: int | str) -> tuple[int, int | None]:
        """(smallest, largest) size of one dimension; None: no limit."""
        if isinstance(dim, int):
            return dim, dim
        known = self.dims.get(dim, Dim(dim))
        return known.min, known.max

    def chunks(self, spec: TensorSpec, rows: Sequence[Any], what: Path) -> Iterator[Sequence[Any]]:
        """Rows in order, a batch at a time; DataError when the last batch is smaller than the model takes."""
        if self.batch < 1:
            raise DataError(f"batch {self.batch} is not 1 or more")
        low, high = self.limits(spec.dims[0])
        size = max(1, low, min(self.batch, high or self.batch))
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            if len(chunk) < low:
                raise DataError(
                    f"{what} has {len(rows)} rows, which leaves {len(chunk)} after batches of {size}, "
                    f"and the model takes {low} or more at a time; add or remove rows"
                )
            yield chunk


# Text


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Rows of a file as samples that fit a model."""

    path: Path
    specs: Mapping[str, TensorSpec]
    encode: Encoder
    low: int
    labels: Labels | None = None

    @staticmethod
    def fitted(path: Path, fit: ModelInputs, encode: Encoder | None) -> TextReader:
        """Raises DataError where texts cannot make the model's inputs."""
        if encode is None:
            raise DataError(f"{path} holds text, but the model has no tokenizer; give raw feeds as .npz")
        specs = {spec.name: spec for spec in fit.inputs}
        first = specs.get("input_ids")
        if first is None or len(first.dims) != 2 or set(specs) != set(encode.inputs):
            raise DataError(
                f"text makes the inputs {', '.join(encode.inputs)} [batch, length]; the model takes "
                f"{', '.join(map(str, fit.inputs))}: give raw feeds as .npz"
            )
        low, high = fit.limits(first.dims[1])
        limits = [limit for limit in (high, encode.max_length) if limit is not None]
        return TextReader(path, specs, dataclasses.replace(encode, max_length=min(limits, default=None)), low)

    def sample(self, chunk: Sequence[Row]) -> tuple[Sample, int]:
        """One batch, and how many of its texts were cut."""
        texts, names = [row.text for row in chunk], [row.where for row in chunk]
        encoded = self.encode.encode_counted(texts, at_least=self.low, names=names)
        feeds = {name: array.astype(self.specs[name].dtype) for name, array in encoded.feeds.items()}
        origins = tuple(row.where for row in chunk)
        labels = _golds(chunk, encoded, self.labels)
        return Sample(f"{origins[0]}..{chunk[-1].line}", feeds, (), origins, labels), encoded.truncated


def text_samples(path: Path, fit: ModelInputs, encode: Encoder | None) -> Data:
    """.txt: a text a line."""
    return _encoded(path, list(text_rows(path)), fit, encode, None)


def table_samples(path: Path, fit: ModelInputs, encode: Encoder | None, audio: Audio | None, labels: Labels | None) -> Data:
    """.jsonl, .csv and .tsv: texts, or recordings with their transcripts."""
    read = tables.read_table(path)
    unused = labels.unused() if labels and read.rows[0].label is not None else ""
    rows = [dataclasses.replace(row, label=None) for row in read.rows] if unused else read.rows
    data = _recordings(path, rows, fit, audio, labels) if read.audio else _encoded(path, rows, fit, encode, labels)
    return dataclasses.replace(data, notes=data.notes + read.notes + ((unused,) if unused else ()))


def text_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time. Raises DataError for a file or a line that cannot be read."""
    if path.suffix.lower() in tables.SUFFIXES:
        return tables.table_rows(path)
    return (Row(at, line, None, f"{path.name}:{at}") for at, line in tables.lines(path))


def _encoded(path: Path, rows: Sequence[Row], fit: ModelInputs, encode: Encoder | None, labels: Labels | None) -> Data:
    reader = dataclasses.replace(TextReader.fitted(path, fit, encode), labels=labels)
    if not rows:
        raise DataError(f"{path} is empty; give one text or more")
    rows = labels.prepared(rows) if labels else rows
    made = [reader.sample(chunk) for chunk in fit.chunks(reader.specs["input_ids"], rows, path)]
    truncated = sum(cut for _, cut in made)
    cut = f"{path.name}: {truncated} of {len(rows)} texts were longer than {reader.encode.max_length} tokens and were cut"
    return Data(tuple(sample for sample, _ in made), reader.encode.notes + ((cut,) if truncated else ()))


def _golds(rows: Sequence[Row], encoded: Encoded, labels: Labels | None) -> tuple[Any, ...]:
    """The gold label of each row; as it was written where nobody says what the task is."""
    if all(row.label is None for row in rows):
        return ()
    if labels is None or labels.task == "sentence-embedding":
        return tuple(row.label for row in rows)
    return tuple(labels.gold(row, *tokens) for row, tokens in zip(rows, encoded.tokens, strict=True))


# Audio


def wav_files(path: Path) -> list[Path]:
    """The .wav files of a directory in order of name; DataError when there are none."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".wav")
    if not files:
        raise DataError(f"no .wav files in the directory {path}; give one or more")
    return files


def wav_samples(path: Path, fit: ModelInputs, audio: Audio | None, only: Sequence[Path] | None = None) -> Data:
    """A directory of mono .wav files, in order of name; or `only` these of them."""
    return _waves(path, wav_files(path) if only is None else only, fit, audio)


def _recordings(path: Path, rows: Sequence[Row], fit: ModelInputs, audio: Audio | None, labels: Labels | None) -> Data:
    """Rows with the path of a .wav file, relative to the table's folder, and its transcript or class as the label."""
    files = [path.parent / str(row.text) for row in rows]
    for row, file in zip(rows, files, strict=True):
        if not file.is_file():
            raise DataError(f"{row.where}: no recording at {file}; 'audio' is a path relative to {path.name}")
    data = _waves(path, files, fit, audio)
    if labels is None or rows[0].label is None:
        return data
    golds, note = labels.of_recordings(rows)
    left = iter(golds)
    samples = tuple(dataclasses.replace(s, labels=tuple(next(left) for _ in s.origins)) for s in data.samples)
    return Data(samples, data.notes + ((note,) if note else ()))


def _waves(path: Path, files: Sequence[Path], fit: ModelInputs, audio: Audio | None) -> Data:
    if audio is None:
        raise DataError(f"{path} holds audio, but the model has no audio preprocessor; give raw feeds as .npz")
    if not audio.raw:
        return _mel_samples(path, files, fit, audio)
    mask_names = [spec.name for spec in fit.inputs if is_mask(spec.name, spec.dtype)]
    floats = [s for s in fit.inputs if np.dtype(s.dtype).kind == "f" and len(s.dims) == 2 and s.name not in mask_names]
    if len(floats) != 1 or len(mask_names) > 1 or len(fit.inputs) != 1 + len(mask_names):
        raise DataError(
            "audio makes one float input [batch, samples] and a mask at most; "
            f"the model takes {', '.join(map(str, fit.inputs))}: give raw feeds as .npz"
        )
    spec = floats[0]
    low, high = fit.limits(spec.dims[1])
    samples, cut = [], 0
    for chunk in fit.chunks(spec, files, path):
        waves = [_wave(file, audio, 1 if isinstance(spec.dims[1], int) else low) for file in chunk]
        cut += sum(high is not None and len(wave) > high for wave in waves)
        feeds = audio_feeds([wave[:high] for wave in waves], audio, fit.inputs, low)
        origins = tuple(file.name for file in chunk)
        samples.append(Sample(f"{origins[0]}..{origins[-1]}", feeds, (), origins))
    note = f"{path.name}: {cut} of {len(files)} files were longer than {high} samples and were cut"
    return Data(tuple(samples), (note,) if cut else ())


def _mel_samples(path: Path, files: Sequence[Path], fit: ModelInputs, audio: Audio) -> Data:
    """Recordings as frames, which are cut where the model takes no more."""
    samples, cut = [], 0
    mask = next((spec.name for spec in fit.inputs if is_mask(spec.name, spec.dtype)), "")
    for chunk in fit.chunks(fit.inputs[0], files, path):
        feeds = audio_feeds([_wave(file, audio, 1) for file in chunk], audio, fit.inputs)
        kept = {spec.name: _within(feeds[spec.name], spec, fit) for spec in fit.inputs}
        cut += int((feeds[mask][:, kept[mask].shape[1] :] != 0).any(1).sum()) if mask else 0
        origins = tuple(file.name for file in chunk)
        label = f"{origins[0]}..{origins[-1]}"
        samples.append(Sample(label, _checked(kept, fit, label), (), origins))
    notes = [f"{path.name}: {cut} of {len(files)} files made more frames than the model takes and were cut"] if cut else []
    if not mask:
        shape = list(samples[0].feeds[fit.inputs[0].name].shape[1:])
        notes.append(f"{path.name}: {audio.kind} makes {shape} of every recording: it cuts longer ones and fills up shorter ones")
    return Data(tuple(samples), tuple(notes))


def _within(array: np.ndarray, spec: TensorSpec, fit: ModelInputs) -> np.ndarray:
    """Rows as they are, with no named dimension behind them larger than the model takes."""
    tops = [fit.limits(dim)[1] if at and isinstance(dim, str) else None for at, dim in enumerate(spec.dims)]
    return array[tuple(slice(top) for top in tops)]


def _wave(file: Path, audio: Audio, low: int) -> np.ndarray:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, libsndfile is not
        raise Missing(f"reading {file.name} needs soundfile ({error}); pip install 'bertc[audio]'") from error
    try:
        wave, rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{file} is not a readable .wav file: {error}") from error
    if wave.shape[1] != 1 or rate != audio.sampling_rate:
        raise DataError(
            f"{file} has {wave.shape[1]} channels at {rate} Hz, the model takes 1 at {audio.sampling_rate} Hz; convert it with "
            f"ffmpeg -i IN.wav -ac 1 -ar {audio.sampling_rate} OUT.wav"
        )
    if len(wave) < max(1, low):
        raise DataError(f"{file} has {len(wave)} samples, the model takes {max(1, low)} or more; remove it")
    return np.asarray(wave[:, 0])


def audio_feeds(waves: Sequence[np.ndarray], audio: Audio, inputs: Sequence[TensorSpec], low: int = 0) -> dict[str, np.ndarray]:
    """Waveforms as a padded batch, as the feature extractor of transformers makes it, or by it where that makes mel frames."""
    if not audio.raw:
        return mel_feeds(waves, audio.kind, audio.files, audio.sampling_rate, inputs)
    length = max(low, *(len(wave) for wave in waves))
    values = np.full((len(waves), length), audio.padding_value, np.float32)
    mask = np.zeros((len(waves), length), np.int64)
    for row, wave in enumerate(waves):
        place = slice(length - len(wave), None) if audio.padding_side == "left" else slice(len(wave))
        values[row, place], mask[row, place] = _normalized(wave) if audio.normalize and audio.masked else wave, 1
        if audio.normalize and not audio.masked:
            values[row] = _normalized(values[row])
    return {spec.name: (mask if is_mask(spec.name, spec.dtype) else values).astype(spec.dtype) for spec in inputs}


def _normalized(wave: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, with the 1e-7 of wav2vec2's feature extractor."""
    return np.asarray((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))


# Arrays


def npz_samples(path: Path, fit: ModelInputs) -> Data:
    """.npz of raw feeds: arrays named as the inputs (one sample), or "<n>/<input>" (sample n)."""
    groups: dict[int, dict[str, np.ndarray]] = {}
    names = [spec.name for spec in fit.inputs]
    found = read_npz(path)
    plain = set(found) == set(names)
    for key, array in found.items():
        number, _, name = key.partition("/")
        if not plain and not (number.isdecimal() and name in names):
            raise DataError(f"{path} has an array {key!r}; expected {', '.join(names)}, or <n>/NAME of the same names, n from 0")
        groups.setdefault(0 if plain else int(number), {})[key if plain else name] = array
    if not groups:
        raise DataError(f"{path} holds no arrays; give one sample or more")
    samples = []
    for at, feeds in sorted(groups.items()):
        label = path.name if plain else f"{path.name} {at}"
        checked = _checked(feeds, fit, label)
        samples.append(Sample(label, checked, dead_rows(checked, Layout.of(fit.inputs, ()))))
    return Data(tuple(samples))


def _checked(feeds: Mapping[str, np.ndarray], fit: ModelInputs, label: str) -> dict[str, np.ndarray]:
    """Feeds in the types of the inputs; DataError names the array that does not fit."""
    sizes: dict[str, int] = {}
    checked = {}
    # Inputs with computed sizes last: the sizes that they are computed from are known by then.
    for spec in sorted(fit.inputs, key=lambda spec: any(derived(dim) for dim in spec.dims if isinstance(dim, str))):
        if spec.name not in feeds:
            raise DataError(f"{label} lacks the input {spec}; it has {', '.join(feeds)}")
        array = feeds[spec.name]
        _check_shape(spec, array.shape, sizes, fit, label)
        wanted = np.dtype(spec.dtype)
        whole = array.dtype.kind in "iub" and wanted.kind in "iub"
        cast = array.astype(wanted) if whole or array.dtype.kind == wanted.kind else None
        if cast is None or (whole and not np.array_equal(cast, array)):
            raise DataError(f"{label}: {spec.name!r} is {array.dtype}, which does not fit {spec}; cast it before saving")
        if wanted.kind == "f" and not np.isfinite(cast).all():
            raise DataError(f"{label}: {spec.name!r} has values that are not finite as {wanted}; outputs could not be compared")
        checked[spec.name] = cast
    return {spec.name: checked[spec.name] for spec in fit.inputs}


def _check_shape(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int], fit: ModelInputs, label: str) -> None:
    may_be_empty = {name for name, dim in fit.dims.items() if not dim.min}  # the cache of a first step
    if len(shape) != len(spec.dims) or any(not n and dim not in may_be_empty for dim, n in zip(spec.dims, shape, strict=True)):
        raise DataError(f"{label}: {spec.name!r} has shape {list(shape)}; expected {spec}, no empty axis")
    for dim, size in zip(spec.dims, shape, strict=True):
        computed = None if isinstance(dim, int) else derived(dim)
        if computed is not None:
            wanted = computed.at(sizes) if set(computed.names) <= sizes.keys() else size
            if size != wanted:
                raise DataError(
                    f"{label}: {spec.name!r} has shape {list(shape)}; {dim} is {wanted} by the other inputs, in {spec}"
                )
            continue
        low, high = fit.limits(dim)
        if size < low or (high is not None and size > high):
            raise DataError(f"{label}: {spec.name!r} has shape {list(shape)}, {dim} from {low} to {high or 'any'} in {spec}")
        if isinstance(dim, str) and dim != "?" and sizes.setdefault(dim, size) != size:
            raise DataError(f"{label}: {spec.name!r} has {dim}={size}, an earlier input has {dim}={sizes[dim]}")
