"""Questions of chatterbot-corpus (BSD, as its package states) as espeak-ng (GPL-3, a program that is called) says them.

Some of the questions are the list that is answered; some are only learned to be told apart; two other parts, never learned,
set the threshold and judge the rejection. Voices, speeds, pitches and noise are drawn by a seed; the voices that judge are not
those that teach. Every clip is a window of two seconds, as a microphone gives it: quiet noise around the words.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import random
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from bertc.core import Missing

RATE, WINDOW = 16000, 32000  # samples a second, and of a clip
ACCENTS = ("en-us", "en-gb")
LEARNED_VOICES = ("m1", "m2", "m3", "m5", "f1", "f2", "f4", "klatt")
JUDGED_VOICES = ("m4", "m7", "f3", "f5")
SPEEDS = (150, 200)  # words a minute
LETTERS = "_abcdefghijklmnopqrstuvwxyz' "  # the first is CTC's blank
ALIKE = 0.75  # of two texts that are too near to be two questions (difflib's ratio)


@dataclasses.dataclass(frozen=True)
class Questions:
    """The list with its answers, and texts that are not in it."""

    listed: dict[str, str]
    learned: list[str]
    validation: list[str]
    test: list[str]


def program() -> str:
    """Where espeak-ng is. Missing where it is not."""
    found = shutil.which("espeak-ng")
    if found is None:
        raise Missing("speech-qa needs the program espeak-ng (Debian: apt-get install espeak-ng)")
    return found


def questions(seed: int, listed: int = 40, learned: int = 120, unknown: int = 40) -> Questions:
    """Short questions that are not alike, in an order that the seed draws."""
    import chatterbot_corpus
    import yaml

    found: dict[str, str] = {}
    for path in sorted((Path(chatterbot_corpus.__file__).parent / "data" / "english").glob("*.yml")):
        for lines in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            said = [str(line) for line in lines or ()]
            text = " ".join(re.findall("[a-z']+", said[0].lower())) if said else ""
            if (
                len(said) > 1
                and 10 <= len(text) <= 30
                and 2 <= len(text.split()) <= 7
                and not re.search("[0-9]|[A-Z]{2}", said[0])
            ):
                found.setdefault(text, said[1])
    order = sorted(found)
    random.Random(seed).shuffle(order)
    kept: list[str] = []
    for text in order:
        if all(difflib.SequenceMatcher(None, text, other).ratio() < ALIKE for other in kept):
            kept.append(text)
    ends = list(itertools.accumulate((listed, learned, unknown, unknown)))
    parts = [kept[first:end] for first, end in zip([0, *ends], ends, strict=False)]
    return Questions({text: found[text] for text in parts[0]}, *parts[1:])


def clips(texts: Iterable[str], voices: Sequence[str], each: int, rng: random.Random) -> tuple[np.ndarray, list[str]]:
    """`each` clips a text [clips, WINDOW], clean, words at the start; their texts. Longer ones are left out."""
    made: list[np.ndarray] = []
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bertc-speech-") as folder:
        for text in texts:
            for _ in range(each):
                clip = _spoken(text, rng, voices, Path(folder) / "clip.wav")
                if len(clip) <= WINDOW:
                    made.append(np.pad(clip, (0, WINDOW - len(clip))))
                    said.append(text)
    return np.stack(made).astype(np.float32), said


def _spoken(text: str, rng: random.Random, voices: Sequence[str], path: Path) -> np.ndarray:
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(voices)}"
    speed, pitch = rng.randint(*SPEEDS), rng.randint(35, 65)
    command = [program(), "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), "--", text]
    subprocess.run(command, check=True, capture_output=True)
    with wave.open(str(path)) as file:
        rate, sound = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return resample_poly(sound[loud[0] : loud[-1] + 1], RATE, rate)


def heard(made: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clips as a microphone hears them: at another time of the window, louder or softer, 10 to 30 dB above noise."""
    found = np.zeros_like(made)
    for at, clip in enumerate(made):
        length = int(np.flatnonzero(clip)[-1]) + 1
        start = int(rng.integers(0, WINDOW - length + 1))
        power = float(np.sqrt(np.mean(clip[:length] ** 2)))
        noise = rng.standard_normal(WINDOW) * power * 10 ** (-rng.uniform(10, 30) / 20)
        found[at] = np.roll(clip, start) + noise
    found -= found.mean(1, keepdims=True)
    return (found / found.std(1, keepdims=True)).astype(np.float32)  # as wav2vec2's feature extractor does


def numbers(text: str) -> list[int]:
    """A text as CTC's symbols."""
    return [LETTERS.index(letter) for letter in text]
