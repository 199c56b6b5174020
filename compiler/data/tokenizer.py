"""The tokenizer of an artifact: texts to arrays over the `tokenizers` package, with no transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import ArtifactError, DataError

CONFIG = "tokenizer_config.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
UNLIMITED = 10**6  # tokenizer_config.json says 1e30 for "no limit"
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

    @staticmethod
    def from_directory(path: Path, max_length: int | None = None, inputs: Sequence[str] = INPUTS) -> Encoder:
        """Read tokenizer.json (and tokenizer_config.json, special_tokens_map.json where they are).

        `max_length` in tokens, None: `model_max_length` of tokenizer_config.json, where it is a real limit. `inputs` are the
        graph's input names. Raises ArtifactError for missing or corrupt files, DataError for an input no tokenizer makes.
        """
        path = Path(path)
        unknown = [name for name in inputs if name not in INPUTS]
        if unknown or not inputs:
            raise DataError(
                f"the model takes {', '.join(map(repr, inputs)) or 'no input'}; a tokenizer makes {', '.join(INPUTS)}; "
                "give data as arrays in an .npz file"
            )
        tokenizer = load_tokenizer(path / "tokenizer.json")
        config = read_config(path / "special_tokens_map.json") | read_config(path / CONFIG)
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
        longest = _whole(config, "model_max_length", 0, 2.0**1000, path)
        if max_length is None and 0 < longest < UNLIMITED:
            max_length = longest
        notes = _notes(padding, truncation, max_length)
        tokenizer.no_padding()
        pad_id, missing = _pad_id(tokenizer, config, padding)
        return Encoder(
            tokenizer,
            tuple(inputs),
            max_length,
            pad_id,
            _whole(config, "pad_token_type_id", padding.get("pad_type_id", 0), 2**31, path),
            _side(config.get("padding_side", padding.get("direction", "right")), path),
            _side(config.get("truncation_side", truncation.get("direction", "right")), path),
            notes + missing,
        )

    def encode(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
        """int64 arrays [texts, longest of the batch], one for each input the graph has.

        Texts over `max_length` are cut (pairs: the longer of the two first). Raises DataError as `encode_counted`.
        """
        return self.encode_counted(texts).feeds

    def encode_counted(self, texts: Sequence[Text], at_least: int = 0) -> Encoded:
        """As `encode`, padded to `at_least` or more, with the number of texts that were cut.

        Raises DataError for no texts, something that is not a text or a pair, a text without tokens, or a `max_length` with no
        room for special tokens.
        """
        self._check(texts)
        if self.max_length is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=self.truncation_side)
        try:
            encodings = self.tokenizer.encode_batch(list(texts))
        except Exception as error:  # the package raises bare Exception, also for a vocabulary without its own unknown token
            raise DataError(
                f"the tokenizer cannot encode these texts: {error}; copy tokenizer.json again from the source"
            ) from error
        for text, encoding in zip(texts, encodings, strict=True):
            if not encoding.ids:
                raise DataError(f"the text {text!r} has no tokens; an encoder needs one or more")
        length = max(at_least, *(len(e.ids) for e in encodings))
        filled = {
            "input_ids": self._fill([e.ids for e in encodings], length, self.pad_id),
            "attention_mask": self._fill([e.attention_mask for e in encodings], length, 0),
            "token_type_ids": self._fill([e.type_ids for e in encodings], length, self.pad_type),
        }
        shifts = [length - len(e.ids) if self.padding_side == "left" else 0 for e in encodings]
        tokens = tuple(zip(encodings, shifts, strict=True))
        return Encoded({name: filled[name] for name in self.inputs}, sum(bool(e.overflowing) for e in encodings), tokens)

    def _check(self, texts: Sequence[Text]) -> None:
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
            raise DataError(f"max length {self.max_length} leaves no room for text: the tokenizer adds {special} special tokens")

    def _fill(self, rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
        array = np.full((len(rows), length), pad, np.int64)
        for filled, row in zip(array, rows, strict=True):
            filled[slice(length - len(row), None) if self.padding_side == "left" else slice(len(row))] = row
        return array


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a tokenizer.json. Raises ArtifactError for a missing or damaged file."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise ArtifactError(
            f"no {path.name} in {path.parent}; bertc reads fast tokenizers only: save it once with "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for whatever it cannot parse
        raise ArtifactError(f"{path} is not a readable tokenizer ({error}); copy it again from the source model") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of the model's assets, {} where there is no file. Raises ArtifactError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); copy it again from the source model") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds {type(data).__name__}, not a JSON object; copy it again from the source model")
    return data


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
    found = [file for file in assets if file.name == "tokenizer.json"]
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


def _whole(config: Mapping[str, Any], key: str, default: int, limit: float, path: Path) -> int:
    """A whole number of tokenizer_config.json; a null counts as absent, 1e30 ("no limit") as a number."""
    found = config.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < limit:  # false for NaN too
        raise ArtifactError(
            f"{path / CONFIG}: {key!r} is {str(found)[:60]!r}, not a number from 0 to {limit:g}; copy it from the source model"
        )
    return int(found)


def _side(value: str, path: Path) -> str:
    side = str(value).lower()
    if side not in ("left", "right"):
        raise ArtifactError(f"{path}: a padding or truncation side of {value!r} in tokenizer_config.json; known: left, right")
    return side
