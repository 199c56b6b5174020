"""Sentences with intents and slots out of home-assistant-intents (Apache-2.0): its English templates, expanded by hassil.

A template such as `<turn> on [<the>] {area} lights` becomes some of the sentences that hassil samples from it, each list in
braces one of its values. Lists that a house fills in itself (areas, names, free text) have the few values below. Whole templates
are held out, where an intent has enough of them: a sentence of the test is no other spelling of one that was learned.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

OWN = {
    "area": "kitchen|living room|bedroom|garage|office|bathroom|hallway|basement|guest room|garden",
    "floor": "first|second|ground|upper|top|lower",
    "name": "ceiling lamp|front door|coffee machine|desk fan|thermostat|robot|back gate|tv|floor lamp|outside humidity|heater",
    "zone": "work|school|the gym|the office|grandma",
    "message": "dinner is ready|we leave in five minutes|the taxi is here|good night everyone",
    "search_query": "the beatles|some jazz|a song about rain|the news|bohemian rhapsody|star wars",
    "timer_name": "pizza|laundry|tea|homework|bread|eggs",
    "timer_command": "turn off the lights|lock the front door|open the garage|stop the music",
    "shopping_list_item": "milk|apples|toilet paper|brown bread|olive oil",
    "todo_list_item": "call the dentist|water the plants|pay the rent|clean the windows",
}
SAMPLED, KEPT = 300, 12  # sentences that hassil makes of a template, and how many of them are kept
HELD_OUT = 4  # one template in so many
BRACES = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Slot:
    """Characters `start` to `end` of a sentence are a value of the list `label`."""

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True)
class Sentence:
    text: str
    intent: str
    slots: tuple[Slot, ...]


def read(seed: int, kept: int = KEPT) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to learn from, and sentences of other templates to judge by."""
    import home_assistant_intents
    from hassil.intents import Intents
    from hassil.sample import sample_sentence

    path = Path(home_assistant_intents.__file__).parent / "data" / "en.json"
    intents = Intents.from_dict(json.loads(path.read_text("utf-8")))
    rng = random.Random(seed)
    learned: list[Sentence] = []
    judged: list[Sentence] = []
    for name, intent in intents.intents.items():
        templates = [(each, data.expansion_rules or {}) for data in intent.data for each in data.sentences]
        rng.shuffle(templates)
        for at, (template, rules) in enumerate(templates):
            made = sample_sentence(template, intents.slot_lists, {**intents.expansion_rules, **rules}, "en", expand_lists=False)
            texts = sorted(set(itertools.islice(made, SAMPLED)))
            found = [_filled(text, name, intents.slot_lists, rng) for text in rng.sample(texts, min(kept, len(texts)))]
            (judged if at % HELD_OUT == HELD_OUT - 1 else learned).extend(found)
    known = {each.text for each in learned}
    return learned, [each for each in judged if each.text not in known]


def _filled(text: str, intent: str, lists: dict[str, Any], rng: random.Random) -> Sentence:
    parts, slots, length, last = [], [], 0, 0
    text = text.strip()
    for found in BRACES.finditer(text):
        value = _value(found[1], lists, rng)
        parts += [text[last : found.start()], value]
        start = length + found.start() - last
        slots.append(Slot(start, start + len(value), found[1]))
        length, last = start + len(value), found.end()
    return Sentence("".join([*parts, text[last:]]), intent, tuple(slots))


def _value(label: str, lists: dict[str, Any], rng: random.Random) -> str:
    """One value of a list: of ours, a number of its range, or one that its templates spell."""
    from hassil.sample import sample_expression

    if label in OWN:
        return rng.choice(OWN[label].split("|"))
    known = lists[label]
    if hasattr(known, "get_numbers"):
        return str(rng.choice(list(known.get_numbers())))
    return rng.choice(sorted(set(sample_expression(rng.choice(known.values).text_in)))).strip()


def with_noise(sentence: Sentence, labels: list[str], rng: random.Random) -> tuple[Slot, ...]:
    """What a poor dictionary finds: half of the slots wrong or with a second label, and in half of the sentences one too many."""
    found = []
    for slot in sentence.slots:
        chance, other = rng.random(), Slot(slot.start, slot.end, rng.choice(labels))
        found += [slot] if chance < 0.5 else [other] if chance < 0.75 else [slot, other]
    words = [each.span() for each in re.finditer(r"\w+", sentence.text)]
    if rng.random() < 0.5 and words:
        found.append(Slot(*rng.choice(words), rng.choice(labels)))
    return tuple(found)


def all_wrong(sentence: Sentence, labels: list[str], rng: random.Random) -> tuple[Slot, ...]:
    """What the worst dictionary finds: no slot has its own label, and three words in ten have a label that nobody asked for."""
    others = [[label for label in labels if label != each.label] for each in sentence.slots]
    found = [Slot(each.start, each.end, rng.choice(other)) for each, other in zip(sentence.slots, others, strict=True)]
    words = [each.span() for each in re.finditer(r"\w+", sentence.text)]
    return (*found, *(Slot(*span, rng.choice(labels)) for span in words if rng.random() < 0.3))
