"""The tokenizer of an artifact: texts to arrays over the `tokenizers` package, with no transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import ArtifactError, DataError
from .model_files import TokenizerConfig
from .text_settings import PROMPT_MASK, TextSettings, read_config, read_settings

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ACCEPTED = (*INPUTS, PROMPT_MASK)
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
UNLIMITED = 10**6  # tokenizer_config.json says 1e30 for "no limit"
SPECIAL_TOKENS = tuple(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>", "</s>")

Text = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Arrays for one batch, how many of its texts lost tokens, and each text's tokens with the position where they begin."""

    feeds: dict[str, np.ndarray]
    truncated: int
    tokens: tuple[tuple[Any, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Texts or pairs of texts to the arrays a graph wants. `notes` say what was overridden in tokenizer.json.

    `rows`: of the model's word table, where known; a token beyond them is an error. `typed`: whether the tokenizer makes types.
    `max_length_in`: the file that `max_length` is from, "" where it is the graph's.
    Not for use from several threads: truncation is a state of the tokenizer below.
    """

    tokenizer: Any
    inputs: tuple[str, ...]
    max_length: int | None
    pad_id: int = 0
    pad_type: int = 0
    padding_side: str = "right"
    truncation_side: str = "right"
    notes: tuple[str, ...] = ()
    settings: TextSettings = dataclasses.field(default_factory=TextSettings)
    rows: int | None = None
    typed: bool = True
    special_ids: frozenset[int] = frozenset()
    max_length_in: str = ""

    @staticmethod
    def from_directory(
        path: Path, max_length: int | None = None, inputs: Sequence[str] = INPUTS, rows: int | None = None
    ) -> Encoder:
        """As `from_files`, of the files in a directory."""
        path = Path(path)
        if not (path / TOKENIZER).is_file():
            raise _no_tokenizer(path)
        return Encoder.from_files({file.name: file for file in path.iterdir()}, max_length, inputs, rows)

    @staticmethod
    def from_files(
        files: Mapping[str, Path], max_length: int | None = None, inputs: Sequence[str] = INPUTS, rows: int | None = None
    ) -> Encoder:
        """Read tokenizer.json, its settings and those of sentence-transformers among the files of a model, by their names.

        `max_length` is what the graph takes, in tokens; texts are cut at it, or before where the settings say so. `inputs` are
        the graph's input names. Raises ArtifactError for missing or corrupt files, DataError for an input no tokenizer makes and
        for a setting that cannot be honoured.
        """
        unknown = [name for name in inputs if name not in ACCEPTED]
        if unknown or not inputs:
            raise DataError(
                f"the model takes {', '.join(map(repr, inputs)) or 'no input'}; a tokenizer makes {', '.join(INPUTS)}; "
                "give data as arrays in an .npz file"
            )
        path = files[TOKENIZER]
        tokenizer = load_tokenizer(path)
        settings = read_settings(files)
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", TOKENIZER_CONFIG):
            config |= read_config(files[name], TokenizerConfig) if name in files else {}
        config |= settings.tokenizer
        if settings.lower_case:
            _lower(tokenizer)
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
        longest = _whole(config, "model_max_length", 0, 2.0**1000, path.parent)
        own = longest if 0 < longest < UNLIMITED else None
        of_texts, of_graph = settings.max_length or own, max_length
        max_length = _shorter(of_graph, of_texts)
        said_in = (settings.max_length_in if settings.max_length else TOKENIZER_CONFIG) if max_length != of_graph else ""
        notes = _notes(padding, truncation, max_length)
        tokenizer.no_padding()
        pad_id, missing = _pad_id(tokenizer, config, padding)
        names = config.get("model_input_names")
        return Encoder(
            tokenizer,
            tuple(inputs),
            max_length,
            pad_id,
            _whole(config, "pad_token_type_id", padding.get("pad_type_id", 0), 2**31, path.parent),
            _side(config.get("padding_side", padding.get("direction", "right")), path.parent),
            _side(config.get("truncation_side", truncation.get("direction", "right")), path.parent),
            notes + missing,
            settings,
            rows,
            not isinstance(names, list) or "token_type_ids" in names,
            _special_ids(tokenizer, config),
            said_in,
        )

    def encode(
        self, texts: Sequence[Text], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> dict[str, np.ndarray]:
        """int64 arrays [texts, longest of the batch], one for each input the graph has.

        A prompt, by its name, as a text, or the model's default, is put before each text (pairs: before the first of the two).
        Texts over `max_length` are cut (pairs: the longer of the two first). Raises DataError as `encode_counted`.
        """
        return self.encode_counted(texts, prompt_name=prompt_name, prompt=prompt).feeds

    def encode_counted(
        self,
        texts: Sequence[Text],
        at_least: int = 0,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        names: Sequence[str] = (),
    ) -> Encoded:
        """As `encode`, padded to `at_least` or more, with the number of texts that were cut. `names` of the rows are for errors.

        Raises DataError for no texts, something that is not a text or a pair, a text without tokens, a token beyond the model's
        word table, a `max_length` with no room for special tokens, or a prompt that the model does not have.
        """
        self.check(texts)
        before = self.settings.prompt(prompt_name, prompt)
        encodings = self._encodings([_prompted(text, before) for text in texts])
        for at, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if not encoding.ids:
                raise DataError(f"the text {text!r} has no tokens; an encoder needs one or more")
            self._check_rows(encoding, names[at] if names else f"text {at} ({text!r:.60})")
        length = max(at_least, *(len(e.ids) for e in encodings))
        shifts = [length - len(e.ids) if self.padding_side == "left" else 0 for e in encodings]
        mask = self._fill([e.attention_mask for e in encodings], length, 0)
        types = [e.type_ids if self.typed else [0] * len(e.ids) for e in encodings]
        filled = {
            "input_ids": self._fill([e.ids for e in encodings], length, self.pad_id),
            "attention_mask": mask,
            "token_type_ids": self._fill(types, length, self.pad_type),
        }
        if PROMPT_MASK in self.inputs:
            filled[PROMPT_MASK] = self._without_prompt(mask, shifts, before)
        tokens = tuple(zip(encodings, shifts, strict=True))
        return Encoded({name: filled[name] for name in self.inputs}, sum(bool(e.overflowing) for e in encodings), tokens)

    def beyond_table(self) -> list[tuple[str, int]]:
        """The tokens, with their ids, for which the model's word table has no row."""
        if self.rows is None:
            return []
        known = self.tokenizer.get_vocab(with_added_tokens=True).items()
        return sorted(((token, at) for token, at in known if at >= self.rows), key=lambda each: each[1])

    def _encodings(self, texts: list[Text]) -> list[Any]:
        if self.max_length is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=self.truncation_side)
        try:
            return list(self.tokenizer.encode_batch(texts))
        except BaseException as error:  # bare Exception, also for a vocabulary without its unknown token; a panic of Rust is none
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(
                f"the tokenizer cannot encode these texts: {error}; copy {TOKENIZER} again from the source"
            ) from error

    def _check_rows(self, encoding: Any, where: str) -> None:
        if self.rows is None or max(encoding.ids) < self.rows:
            return
        at = max(encoding.ids)
        raise DataError(
            f"{where}: token {self.tokenizer.id_to_token(at)!r} has id {at}, and the model's word table has {self.rows} rows: "
            "the tokenizer has tokens that the model was never resized for (resize_token_embeddings), or is another model's"
        )

    def _without_prompt(self, mask: np.ndarray, shifts: Sequence[int], prompt: str) -> np.ndarray:
        """The mask without the positions of the prompt, as sentence-transformers counts them: the prompt's tokens by itself, but
        for the special token that ends it."""
        if not prompt:
            return mask
        ids = self._encodings([prompt])[0].ids
        count = len(ids) - (bool(ids) and ids[-1] in self.special_ids)
        starts = np.asarray(shifts)[:, None] + count
        return mask * (np.arange(mask.shape[1])[None, :] >= starts)

    def check(self, texts: Sequence[Text]) -> None:
        """Raises DataError for no texts, for what is no text or pair, and for a `max_length` without room."""
        if isinstance(texts, str) or not len(texts):
            raise DataError(f"encode needs a list of texts, one or more; got {texts!r}")
        pairs = False
        for text in texts:
            pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
            if not pair and not isinstance(text, str):
                raise DataError(f"encode needs texts or pairs (tuples) of texts; got {text!r:.80}")
            pairs |= pair
        special = self.tokenizer.num_special_tokens_to_add(pairs)
        if self.max_length is not None and self.max_length <= special:
            where = f" of {self.max_length_in}" if self.max_length_in else ""
            raise DataError(
                f"max length {self.max_length}{where} leaves no room for text: the tokenizer adds {special} special tokens"
            )

    def _fill(self, rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
        array = np.full((len(rows), length), pad, np.int64)
        for filled, row in zip(array, rows, strict=True):
            filled[slice(length - len(row), None) if self.padding_side == "left" else slice(len(row))] = row
        return array


def _no_tokenizer(folder: Path) -> ArtifactError:
    pieces = sorted(path.name for path in folder.glob("*.model"))
    if pieces:
        return ArtifactError(
            f"no {TOKENIZER} in {folder}: {pieces[0]} was not converted at build; pip install sentencepiece, and build again"
        )
    return ArtifactError(
        f"no {TOKENIZER} in {folder}; bertc reads fast tokenizers only: save it once with "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)"
    )


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a tokenizer.json. Raises ArtifactError for a missing or damaged file."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise _no_tokenizer(path.parent)
    damaged = "{} is not a readable tokenizer ({}); copy it again from the source model"
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for whatever it cannot parse
        raise ArtifactError(damaged.format(path, error)) from error
    if lacking := _without_ids(found):
        raise ArtifactError(damaged.format(path, f"its template has {lacking[0]!r}, which is none of its special_tokens"))
    return found


def _without_ids(tokenizer: Any) -> list[str]:
    """Special tokens of a template that have no ids there: the package panics when it encodes with such a one."""
    from tokenizers import processors

    def parts(found: Any) -> Iterator[dict[str, Any]]:
        for each in found.get("processors", [found]):
            yield from parts(each) if each is not found else [each]

    if not isinstance(tokenizer.post_processor, processors.TemplateProcessing | processors.Sequence):
        return []
    known = parts(json.loads(tokenizer.post_processor.__getstate__()))
    return [
        piece["SpecialToken"]["id"]
        for part in known
        if part["type"] == "TemplateProcessing"
        for piece in (*part["single"], *part["pair"])
        if "SpecialToken" in piece and piece["SpecialToken"]["id"] not in part["special_tokens"]
    ]


def _lower(tokenizer: Any) -> None:
    """Lower case first, where the tokenizer does not do so itself: what `do_lower_case` does in sentence-transformers."""
    from tokenizers import normalizers

    found = tokenizer.normalizer
    several = isinstance(found, normalizers.Sequence)
    if isinstance(found, normalizers.Lowercase) or (several and any(isinstance(n, normalizers.Lowercase) for n in found)):
        return
    after = list(found) if several else [found] if found is not None else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])


def _shorter(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _prompted(text: Text, prompt: str) -> Text:
    return (prompt + text[0], text[1]) if isinstance(text, tuple) else prompt + text


def _notes(padding: Mapping[str, Any], truncation: Mapping[str, Any], max_length: int | None) -> tuple[str, ...]:
    """What tokenizer.json bakes in, against what is done: it would cut texts, or pad each to a length nobody asked for."""
    fixed = padding.get("length")
    baked = [f"padding to {fixed}"] if fixed else []
    cut = truncation.get("max_length")
    baked += [f"truncation at {cut}"] if cut is not None and cut != max_length else []
    if not baked:
        return ()
    done = "no truncation" if max_length is None else f"truncation at {max_length}"
    return (f"tokenizer.json sets {' and '.join(baked)}: overridden by padding to the longest of a batch, {done}",)


def override_notes(assets: Sequence[Path]) -> tuple[str, ...]:
    """What a tokenizer.json among the assets bakes in that bertc overrides; () where there is none."""
    found = [file for file in assets if file.name == TOKENIZER]
    if not found:
        return ()
    settings = read_config(found[0])
    padding, truncation = (each if isinstance(each := settings.get(key), dict) else {} for key in ("padding", "truncation"))
    strategy = padding.get("strategy")
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    notes = _notes({"length": fixed}, truncation, None)
    return tuple(note.replace("no truncation", "truncation at the limit of the model or profile") for note in notes)


def _pad_id(tokenizer: Any, config: Mapping[str, Any], padding: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The padding id, in the order transformers looks for it: its configuration, tokenizer.json, then well-known names."""
    token = config.get("pad_token") or padding.get("pad_token")
    named = token.get("content") if isinstance(token, dict) else token
    for name in (*([named] if isinstance(named, str) else []), *PAD_TOKENS):
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found), ()
    return 0, ("the tokenizer has no padding token: id 0 pads",)


def _special_ids(tokenizer: Any, config: Mapping[str, Any]) -> frozenset[int]:
    """Of the tokens that the configuration calls special, as transformers counts them; those of tokenizer.json do not matter."""
    more = [config.get(name) or () for name in ("additional_special_tokens", "extra_special_tokens")]
    tokens = [config.get(name) for name in SPECIAL_TOKENS]
    tokens += [token for each in more for token in (each.values() if isinstance(each, dict) else each)]
    found = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    ids = (tokenizer.token_to_id(token) for token in found if isinstance(token, str))
    return frozenset(at for at in ids if at is not None)


def _whole(config: Mapping[str, Any], key: str, default: int, limit: float, path: Path) -> int:
    """A whole number of tokenizer_config.json; a null counts as absent, 1e30 ("no limit") as a number."""
    found = config.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < limit:  # false for NaN too
        raise ArtifactError(
            f"{path / TOKENIZER_CONFIG}: {key!r} is {str(found)[:60]!r}, not a number from 0 to {limit:g}; "
            "copy it from the source model"
        )
    return int(found)


def _side(value: str, path: Path) -> str:
    side = str(value).lower()
    if side not in ("left", "right"):
        raise ArtifactError(f"{path}: a padding or truncation side of {value!r} in tokenizer_config.json; known: left, right")
    return side
