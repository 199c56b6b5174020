"""What a search works on: the model, its texts, the judge of what it loses, and the network that candidates are parts of."""

from __future__ import annotations

import dataclasses

from .. import compress
from ..compress import judging
from ..core import Progress, silent
from ..distill import Net, Teachers, Texts, encode
from . import engines
from .engines import Bench
from .request import Request
from .space import Space, space_of
from .supernet import supernet_of


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a search works on; `net` is the network that all candidates are parts of."""

    original: Net
    net: Net
    texts: Texts
    teachers: Teachers
    judge: judging.Judge
    space: Space
    bench: Bench


def open_all(request: Request, log: Progress) -> Opened:
    asked = compress.Request(
        request.model, request.data, request.held_out, request.pairs, seed=request.seed, max_length=request.max_length,
        samples=request.samples, options=request.options,
    )  # fmt: skip
    original, texts, teachers = compress.open_model(asked, log)
    bench, space = engines.bench_of(original, request), space_of(original, request)
    for name, why in space.not_searched.items():
        log.note(f"not searched: {name}: {why}")
    with log.stage("judge the original"):
        judge = judging.judge_of(original, teachers, texts, judging.read_pairs(request.pairs, original.task, log), log)
    encoded = encode(compress.some(texts, asked), original.encoder, silent)
    net = supernet_of(original, space, encoded, request.seed, log)
    return Opened(original, net, texts, teachers, judge, space, bench)
