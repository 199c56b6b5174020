"""Does a text, or a recording, become what the library of the model makes of it? Ids exactly, outputs within float32.

The other checks feed both sides the same arrays, and cannot see a prompt, a limit or a lower case that got lost before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core import BertcError, ExportFailed, Missing, Outputs, Progress, first_line, stop_if_exhausted
from ..data import Audio, Encoder, Layout, Sample, Text, audio_feeds, index_bounds, preprocess
from ..runtime import ReferenceRunner
from ..source import InputTruth, Source
from .comparison import Comparison

# float32 on both sides; the library runs another attention kernel. A wrong id moves an output by 1e-2 and more.
TOLERANCE = 1e-4
LONGEST_RUN = 512  # tokens; ids of longer texts are compared, the model is not run on them
SPECIALS = 6  # special tokens of the tokenizer that are put into a text
TEXTS = (
    "the cat sat on a mat",
    "UPPER CASE, Mixed Case and ÜNÏCÖDÉ: naïve café, Straße",
    "日本語 and 🙂 emoji; don't re-enter $3.50",
    "  two  spaces,\ttab and\nnew line  ",
    "",
)
UNLIMITED_WORDS = 600
WORDS = 12  # of the vocabulary, in a text of them
SHOWN = 3  # tokens beyond the table that a note names


@dataclasses.dataclass(frozen=True)
class InputsCheck:
    """What was compared with which library, how far the outputs were; or the reason why nothing was."""

    against: str = ""
    compared: str = ""
    relative: float | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for the output of a build, "" where the model takes neither texts nor recordings."""
        if self.reason:
            return f"inputs not compared: {self.reason}"
        if not self.against:
            return ""
        ran = "" if self.relative is None else f", max relative error of outputs {self.relative:.1e}"
        return f"inputs check: {self.compared} as {self.against}{ran}"

    def facts(self) -> dict[str, Any] | None:
        """For the manifest: what was compared, without what was measured."""
        return (
            {"against": self.against, "compared": self.compared, "reason": self.reason} if self.against or self.reason else None
        )

    def to_json(self) -> dict[str, Any] | None:
        facts = self.facts()
        return {**facts, "max_relative_error": self.relative} if facts else None

    @staticmethod
    def recorded(facts: Mapping[str, Any] | None) -> InputsCheck:
        """The check of an export that a build goes on from."""
        found = facts or {}
        return InputsCheck(found.get("against", ""), found.get("compared", ""), None, found.get("reason", ""))


def check_inputs(source: Source, log: Progress) -> InputsCheck:
    """Compare what bertc's reading of the source's files makes of texts or recordings with what the source's library makes.

    Raises ExportFailed where they differ, naming the text.
    """
    with log.stage("check inputs"):
        found = _check(source)
    for text in (found.summary(), *found.notes):
        if text:
            log.note(text)
    return found


def _check(source: Source) -> InputsCheck:
    bounds = index_bounds(source.graph)
    _, encoder, audio = preprocess.preprocessors(source.graph.inputs, source.dims, source.assets, (), bounds)
    if encoder is None and audio is None:
        return InputsCheck()
    notes = _beyond_table(encoder) if encoder else ()
    if source.inputs_truth is None:
        return dataclasses.replace(InputsCheck.recorded(source.inputs_record), notes=notes)
    try:
        truth = source.inputs_truth()
    except Missing as why:
        return InputsCheck(reason=str(why), notes=notes)
    try:
        if audio is not None and truth.values is not None:
            return _check_audio(source, audio, truth)
        if encoder is not None and truth.ids is not None:
            return dataclasses.replace(_check_texts(source, encoder, truth), notes=notes)
    except BertcError:
        raise
    except Exception as error:  # noqa: BLE001 - a library that fails on a text is no truth; it raises whatever it likes
        stop_if_exhausted(error)
        return InputsCheck(reason=f"{truth.name} fails on a text or a recording ({_line(error)})", notes=notes)
    return InputsCheck(reason=f"{truth.name} makes no inputs of this kind", notes=notes)


def _beyond_table(encoder: Encoder) -> tuple[str, ...]:
    beyond = encoder.beyond_table()
    if not beyond:
        return ()
    named = ", ".join(f"{token!r} {at}" for token, at in beyond[:SHOWN]) + (" ..." if len(beyond) > SHOWN else "")
    where = f"{len(beyond)} tokens of the tokenizer lie beyond the word table of {encoder.rows} rows ({named})"
    return (f"{where}: a text with one of them is refused",)


# ---- texts -----------------------------------------------------------------------------------------------------------


def _check_texts(source: Source, encoder: Encoder, truth: InputTruth) -> InputsCheck:
    assert truth.ids is not None
    runner = ReferenceRunner(source.graph) if truth.outputs is not None else None
    texts, rows = list(_texts(encoder)), "texts" if truth.singles else ""
    rows += f"{' and ' if truth.singles else ''}pairs" if truth.pairs else ""
    named = [name for name, prompt in encoder.settings.prompts.items() if prompt]
    comparison, ran, count = Comparison(layout=Layout.of(source.graph.inputs, source.graph.outputs)), 0, 0
    for kind in (texts if truth.singles else [], list(_pairs(texts[-1])) if truth.pairs else []):
        known = [text for text in kind if _possible(encoder, truth, text)]
        for prompt in (None, *named) if known else ():
            chosen = known if prompt is None else known[:2]
            _compare_ids(encoder, truth, chosen, prompt)
            for text in chosen:
                feeds = encoder.encode([text], prompt_name=prompt)
                if runner is None or feeds["input_ids"].shape[1] > LONGEST_RUN:
                    continue
                assert truth.outputs is not None
                named_sample = Sample("", feeds, (), (f"{text!r:.100}",))
                _add_outputs(comparison, truth.outputs(text, prompt), runner.run(feeds), named_sample, truth)
                ran += 1
        count += len(known)
    if not count:
        return InputsCheck(reason="the tokenizer makes no ids that the model has, of any text that was tried")
    what = f"ids of {count} {rows}" + (f", prompts {', '.join(named)}" if named else "")
    return InputsCheck(truth.name, what, _largest_distance(comparison, truth.name) if ran else None)


def _texts(encoder: Encoder) -> Iterator[str]:
    """Texts of many kinds, the last of them longer than the model takes. Words that are in no vocabulary show nothing of case."""
    yield from TEXTS
    words = sorted(word for word in encoder.tokenizer.get_vocab(with_added_tokens=False) if word.isalpha())
    known = " ".join(words[:: max(1, len(words) // WORDS)][:WORDS])
    if known:
        yield from (known, known.upper(), known.title())
    added = encoder.tokenizer.get_added_tokens_decoder().values()
    tokens = [token.content for token in added][:SPECIALS]
    if tokens:
        yield "between " + " between ".join(tokens) + " end"
    yield "every longer text is cut, ".strip() + " word" * ((encoder.max_length or UNLIMITED_WORDS) + 8)


def _pairs(long: str) -> Iterator[tuple[str, str]]:
    yield from (("What is it?", "It is a DOG."), ("a dog", ""), ("a question", long), (long, "an answer"), (long, long))


def _possible(encoder: Encoder, truth: InputTruth, text: Text) -> bool:
    """Whether the model has a row for each token, the text has one, and the library cuts where the model ends."""
    ids = encoder.tokenizer.encode_batch([text])[0].ids
    if not ids or (encoder.rows is not None and max(ids) >= encoder.rows):
        return False
    assert truth.ids is not None
    # Where a library does not know the model's limit, its own model fails on a long text: there is nothing to compare with.
    return encoder.max_length is None or truth.ids([text], None)["input_ids"].shape[1] <= encoder.max_length


def _compare_ids(encoder: Encoder, truth: InputTruth, texts: Sequence[Text], prompt: str | None) -> None:
    assert truth.ids is not None
    batches = [[text] for text in texts] + ([list(texts)] if truth.pads else [])
    for batch in batches:
        wanted, got = truth.ids(batch, prompt), encoder.encode(batch, prompt_name=prompt)
        for name in got:
            if name not in wanted or np.array_equal(wanted[name], got[name]):
                continue
            what = f"the text {batch[0]!r:.100}" if len(batch) == 1 else f"a batch of {len(batch)} texts"
            named = f" with the prompt {prompt!r}" if prompt is not None else ""
            raise ExportFailed(
                f"{what}{named} becomes other {name} than in {truth.name}: {_short(got[name])} for {_short(wanted[name])}. "
                "A copy of the source without its tokenizer's files builds, and takes ids alone"
            )


def _short(array: np.ndarray) -> str:
    row = array[0].tolist()
    return f"[{', '.join(map(str, row[:12]))}{' ...' if len(row) > 12 else ''}] of {array.shape[1]}"


def _add_outputs(comparison: Comparison, wanted: Outputs, got: Outputs, sample: Sample, truth: InputTruth) -> None:
    """Compare what the library gives for a text; raises ExportFailed where the graph has no such output, or another shape."""
    for output, array in wanted.items():
        found = got.get(output)
        if found is None or found.shape != array.shape:
            has = "no such output" if found is None else f"{list(found.shape)}"
            text = sample.where(0)
            raise ExportFailed(f"{truth.name} gives {output!r} {list(array.shape)} for the text {text}, the graph {has}")
    comparison.add(wanted, {name: got[name] for name in wanted}, sample)


def _largest_distance(comparison: Comparison, name: str) -> float:
    """The largest relative error; raises ExportFailed where it is over the tolerance."""
    outputs = comparison.result().outputs
    for each in outputs:
        if not each.relative <= TOLERANCE:
            raise ExportFailed(
                f"the text {each.worst} has other {each.name!r} than in {name}: relative error {each.relative:.1e} (limit "
                f"{TOLERANCE:g}), though its ids are the same: something in the source's folder changes its outputs, and the "
                "graph does not have it"
            )
    return max(each.relative for each in outputs)


# ---- recordings ------------------------------------------------------------------------------------------------------


def _check_audio(source: Source, audio: Audio, truth: InputTruth) -> InputsCheck:
    assert truth.values is not None
    random = np.random.default_rng(0)
    waves = [random.standard_normal(size).astype(np.float32) * 0.1 + 0.02 for size in (4000, 6400, 5123)]
    for batch in ([waves[0]], waves):
        wanted, got = truth.values(batch), audio_feeds(batch, audio, source.graph.inputs)
        for name, array in wanted.items():
            if name not in got:
                continue
            if got[name].shape != array.shape or not np.allclose(got[name], array, rtol=0, atol=1e-5):
                raise ExportFailed(
                    f"{len(batch)} recordings become other {name} than in {truth.name}. A copy of the source without its "
                    "preprocessor's files builds, and takes arrays alone"
                )
    return InputsCheck(truth.name, f"{len(waves)} recordings")


def _line(error: Exception) -> str:
    return first_line(error)
