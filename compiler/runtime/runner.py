"""What a loaded artifact offers: named arrays in, named arrays out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import DataError, Feeds, Outputs, Profile, TensorSpec, derived, did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from ..data import Encoder, TextSettings

EMBEDDING = "sentence_embedding"
MOST_ROWS = 32  # texts of one run of `embed`


class Runner(abc.ABC):
    """Runs one artifact. `inputs` and `outputs` describe its tensors, `profiles` the sizes it was built for.

    `buckets` are the profiles of its recipe, also where the engine is not bound to them: `run_padded` pads to their lengths.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], profiles: Sequence[Profile] = ()) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.profiles = tuple(profiles)
        self.buckets = self.profiles
        self.tokenizer: Path | None = None
        self.index_bounds: dict[str, int] = {}
        self.masks: dict[str, str] = {}
        self._padding_id: int | None = None  # read from the tokenizer when it is first needed

    @property
    def io(self) -> dict[str, tuple[TensorSpec, ...]]:
        """{"inputs": ..., "outputs": ...}, each a tuple of TensorSpec (name, dtype, dims)."""
        return {"inputs": self.inputs, "outputs": self.outputs}

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. Feeds are cast to the declared integer or float type when no value changes.

        Raises DataError for a missing or unknown input, a wrong rank, sizes that disagree, or a size outside every profile.
        """
        return self._run(self._checked(feeds))

    def check(self, feeds: Feeds) -> Feeds:
        """The feeds as `run` gives them to the engine, without running it. Raises DataError as `run` does."""
        return self._checked(feeds)

    def run_padded(self, feeds: Feeds) -> Outputs:
        """Run once at the shape of `bucket(feeds)`; outputs are cut back to the length of the feeds.

        They equal those of `run` where the model heeds its mask: padding is masked. A convolution over the sequence (MobileBERT,
        ConvBERT) does not. Raises DataError as `run` and `bucket` do.
        """
        from .padding import cut_outputs

        pad_feeds = self.bucket(feeds)
        return cut_outputs(self._run(self._checked(pad_feeds)), self.inputs, self.outputs, feeds, self.masks)

    def bucket(self, feeds: Feeds) -> Feeds:
        """Feeds padded on the right to the smallest bucket that holds them, so that shapes repeat.

        Ids get the tokenizer's padding id (0 without a tokenizer), masks what marks padding in them, types 0.

        Raises DataError for a model without a mask over token ids, without buckets, and for feeds that no bucket holds.
        """
        from .padding import pad_feeds

        return pad_feeds(feeds, self.inputs, self.buckets, self._pad_id(), self.masks)

    def _pad_id(self) -> int:
        if self._padding_id is None:
            from ..data import Encoder

            self._padding_id = Encoder.from_directory(self.tokenizer).pad_id if self.tokenizer else 0
        return self._padding_id

    def takes(self, feeds: Feeds) -> bool:
        """Whether these feeds fit one of the profiles (always, where there are none)."""
        sizes = {dim: size for spec in self.inputs for dim, size in zip(spec.dims, feeds[spec.name].shape, strict=True)}
        return not self.profiles or any(
            all(r.min <= sizes[name] <= r.max for name, r in profile.items() if name in sizes) for profile in self.profiles
        )

    def encode(
        self, texts: Sequence[str | tuple[str, str]], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> dict[str, np.ndarray]:
        """Texts, or pairs of texts, as the feeds of `run`, padded to the longest.

        Lengths, lower case and prompts are as the model's folder says. `prompt_name` chooses another of its prompts than the
        default, `prompt` is one of your own ("" for none). DataError without a tokenizer.
        """
        return self.encoder().encode(texts, prompt_name=prompt_name, prompt=prompt)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = False,
    ) -> np.ndarray:
        """Vectors [texts, width] of texts, as `SentenceTransformer.encode` gives them: cut to the first `truncate_dim` numbers,
        and of unit length after that only where `normalize` asks for it.

        Raises DataError for a model that gives no sentence_embedding, for a wrong `truncate_dim`, and as `encode` and `run`.
        """
        import numpy as np

        width = next((spec.dims[-1] for spec in self.outputs if spec.name == EMBEDDING), None)
        if width is None:
            raise DataError(f"embed needs an output {EMBEDDING!r}; this artifact gives {', '.join(s.name for s in self.outputs)}")
        if truncate_dim is not None and (truncate_dim < 1 or (isinstance(width, int) and truncate_dim > width)):
            raise DataError(f"truncate_dim {truncate_dim}: the vectors of this artifact have {width} dimensions")
        encoder, size = self.encoder(), self._rows_at_once()
        encoder.check(texts)
        chunks = [texts[at : at + size] for at in range(0, len(texts), size)]
        made = [self.run(encoder.encode(chunk, prompt_name=prompt_name, prompt=prompt))[EMBEDDING] for chunk in chunks]
        vectors = np.concatenate(made).astype(np.float32)[:, :truncate_dim]
        # The floor is that of torch.nn.functional.normalize.
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    @property
    def text_settings(self) -> TextSettings:
        """What the model's folder says of texts: prompts, default_prompt_name, max_length, similarity_fn_name, truncate_dim."""
        return self.encoder().settings

    def _rows_at_once(self) -> int:
        first = self.inputs[0].dims[0]
        if isinstance(first, int):
            return first
        tops = [profile[first].max for profile in self.profiles if first in profile]
        return min(MOST_ROWS, max(tops, default=MOST_ROWS))

    def encoder(self) -> Encoder:
        """The tokenizer of the artifact, cut at the longest that its engine takes. DataError where it has none."""
        if self.tokenizer is None:
            raise DataError("this artifact has no tokenizer: its source had none, or takes no text")
        from ..data import Encoder

        dims = {dim for spec in self.inputs for dim in spec.dims}
        tops = [profile["length"].max for profile in self.profiles if "length" in profile and "length" in dims]
        names = [spec.name for spec in self.inputs]
        return Encoder.from_directory(self.tokenizer, max(tops, default=None), names, self.index_bounds.get("input_ids"))

    @abc.abstractmethod
    def _run(self, feeds: Feeds) -> Outputs: ...

    def _checked(self, feeds: Feeds) -> Feeds:
        known = [spec.name for spec in self.inputs]
        for name in feeds:
            if name not in known:
                raise DataError(f"unknown input {name!r}{did_you_mean(name, known)}")
        sizes: dict[str, int] = {}
        checked = {spec.name: self._checked_input(spec, feeds, sizes) for spec in self.inputs}
        for spec in self.inputs:
            _check_computed(spec, checked[spec.name].shape, sizes)
        if not self.takes(checked):  # each size fits some profile, but no profile has them all
            asked = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
            allowed = " or ".join(",".join(f"{name}={r.min}..{r.max}" for name, r in p.items()) for p in self.profiles)
            raise DataError(f"no profile of this artifact fits {asked} ({allowed})")
        return checked

    def _checked_input(self, spec: TensorSpec, feeds: Feeds, sizes: dict[str, int]) -> np.ndarray:
        import numpy as np

        if spec.name not in feeds:
            raise DataError(f"input {spec} is missing; got {', '.join(feeds) or 'nothing'}")
        try:
            array = np.asarray(feeds[spec.name])
        except ValueError as error:
            raise DataError(f"input {spec} is no array: {error}") from error
        if array.ndim != len(spec.dims):
            raise DataError(f"input {spec} needs rank {len(spec.dims)}, got shape {list(array.shape)}")
        for dim, size in zip(spec.dims, array.shape, strict=True):
            if isinstance(dim, int) or derived(dim) is None:
                self._check_size(spec, dim, size, sizes)
        wanted = np.dtype(spec.dtype)
        if array.dtype == wanted:
            return array
        if array.dtype.kind != wanted.kind and not (array.dtype.kind in "iub" and wanted.kind in "iub"):
            raise DataError(f"input {spec} got dtype {array.dtype}; cast it to {wanted}")
        cast = array.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(cast, array):
            raise DataError(f"input {spec} got {array.dtype} values that do not fit {wanted}")
        return cast

    def _check_size(self, spec: TensorSpec, dim: int | str, size: int, sizes: dict[str, int]) -> None:
        if isinstance(dim, int):
            if dim != size:
                raise DataError(f"input {spec} needs size {dim}, got {size}")
            return
        if sizes.setdefault(dim, size) != size:
            raise DataError(f"input {spec.name!r} has {dim}={size}, but an earlier input has {dim}={sizes[dim]}")
        ranges = [profile[dim] for profile in self.profiles if dim in profile]
        if ranges and not any(r.min <= size <= r.max for r in ranges):
            allowed = " or ".join(f"{r.min}..{r.max}" for r in ranges)
            raise DataError(f"input {spec.name!r} has {dim}={size}, outside what this artifact was built for ({dim} {allowed})")


def _check_computed(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """DataError for a size that does not follow from the others as it must: a mask of past + 1."""
    for dim, size in zip(spec.dims, shape, strict=True):
        computed = None if isinstance(dim, int) else derived(dim)
        if computed is not None and set(computed.names) <= sizes.keys() and computed.at(sizes) != size:
            given = ", ".join(f"{name}={sizes[name]}" for name in computed.names)
            raise DataError(f"input {spec} has {dim} = {size}, which must be {computed.at(sizes)}: the other inputs have {given}")
