"""One small module per task around a transformers encoder: plain tensors in, named plain tensors out.

What follows the encoder (pooling, normalisation, classification head) is part of the module, so it is part of the graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Feeds, Outputs, SourceError, did_you_mean
from .chain import Chain
from .checkpoint import ModuleSpec
from .weight_files import elements

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def text_inputs(model: nn.Module) -> tuple[str, ...]:
    """Names of the inputs a text encoder takes; token_type_ids only where it has more than one type to tell apart."""
    config: Any = model.config
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    types = getattr(config, "type_vocab_size", 0) or 0
    return TEXT_INPUTS if takes_types and types > 1 else TEXT_INPUTS[:2]


class TextHead(nn.Module):
    """Base of the text tasks: int64 ids, mask (1: a token, 0: padding) and types, each [batch, length]."""

    outputs: tuple[str, ...] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Any:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            feeds["token_type_ids"] = token_type_ids
        return self.model(**feeds, return_dict=True)

    def run_bare(self, feeds: Feeds, outputs: Sequence[str]) -> Outputs:
        """Outputs of the model of transformers inside, on all that its tokenizer makes, as somebody without bertc gets them."""
        known = inspect.signature(self.model.forward).parameters
        with torch.inference_mode():
            found = self.model(**{n: torch.from_numpy(array) for n, array in feeds.items() if n in known}, return_dict=True)
            return {name: getattr(found, name).float().numpy() for name in outputs}


class Features(TextHead):
    """last_hidden_state [batch, length, hidden]; with_pooler adds pooler_output [batch, hidden]."""

    def __init__(self, model: nn.Module, with_pooler: bool) -> None:
        super().__init__(model)
        self.outputs = ("last_hidden_state", "pooler_output") if with_pooler else ("last_hidden_state",)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.encode(input_ids, attention_mask, token_type_ids)
        return tuple(getattr(found, name) for name in self.outputs)


class TokenEmbedding(TextHead):
    """token_embeddings [batch, length, dim]: a chain of a sentence-transformers directory that does not pool (ColBERT)."""

    outputs: tuple[str, ...] = ("token_embeddings",)

    def __init__(self, model: nn.Module, tokens: Sequence[nn.Module], states: str = "last_hidden_state") -> None:
        super().__init__(model)
        self.tokens = nn.ModuleList(tokens)
        self.states = states

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x = getattr(self.encode(input_ids, attention_mask, token_type_ids), self.states)
        for module in self.tokens:
            x = module(x)
        return x


class SentenceEmbedding(TokenEmbedding):
    """sentence_embedding [batch, dim]: the chain of a sentence-transformers directory after its encoder.

    `pooling_mask` is the mask without the prompt, for a pooling with include_prompt false.
    """

    outputs = ("sentence_embedding",)

    def __init__(
        self,
        model: nn.Module,
        pooling: nn.Module,
        after: Sequence[nn.Module],
        tokens: Sequence[nn.Module] = (),
        states: str = "last_hidden_state",
    ) -> None:
        super().__init__(model, tokens, states)
        self.pooling = pooling
        self.after = nn.ModuleList(after)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        pooling_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.pooling(super().forward(input_ids, attention_mask, token_type_ids), attention_mask, pooling_mask)
        for module in self.after:
            x = module(x)
        return x


class Logits(TextHead):
    """logits: [batch, labels] of a sequence, [batch, length, labels] of tokens, [batch, length, vocabulary] of a masked LM."""

    outputs = ("logits",)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.encode(input_ids, attention_mask, token_type_ids).logits


class QuestionAnswering(TextHead):
    """start_logits and end_logits, each [batch, length]."""

    outputs = ("start_logits", "end_logits")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        found = self.encode(input_ids, attention_mask, token_type_ids)
        return found.start_logits, found.end_logits


class Audio(nn.Module):
    """float32 input_values [batch, samples] (and an int64 mask of that shape) -> [batch, frames, ...] or [batch, labels].

    `output` is last_hidden_state (features), or logits: of each frame (CTC, frame classification) or of the recording.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.outputs = (output,)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run({"input_values": input_values}, attention_mask)

    def run(self, feeds: dict[str, Tensor], attention_mask: Tensor | None) -> Tensor:
        if attention_mask is not None:  # some classes have no parameter of this name
            feeds["attention_mask"] = attention_mask
        return getattr(self.model(**feeds, return_dict=True), self.outputs[0])


class MelFrames(Audio):
    """float32 mel frames as input_features, [batch, frames, mel] (and an int64 mask of frames) or as the model has them."""

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run({"input_features": input_features}, attention_mask)


class Pooling(nn.Module):
    """Token states [batch, length, hidden] and mask [batch, length] -> [batch, modes * hidden].

    Equal to sentence_transformers' Pooling for every row that has a token, also left-padded or with holes. A row without
    one gives zeros (cls: its first state) where sentence_transformers gives -inf for max: an engine must stay finite.
    `pooled` [batch, length] are the positions to pool, where these are not all of the mask; weights count from the mask's first.
    """

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, x: Tensor, attention_mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        mask = attention_mask if pooled is None else pooled
        made = [
            self._weightedmean(x, mask, attention_mask) if mode == "weightedmean" else getattr(self, f"_{mode}")(x, mask)
            for mode in self.modes
        ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    def _cls(self, x: Tensor, mask: Tensor) -> Tensor:
        return _state_at(x, _first(mask))

    def _max(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask.unsqueeze(-1) > 0
        highest = x.masked_fill(~keep, torch.finfo(x.dtype).min).amax(dim=1)
        return torch.where(keep.any(dim=1), highest, torch.zeros_like(highest))

    def _mean(self, x: Tensor, mask: Tensor) -> Tensor:
        # A count is 0 or at least 1, so a floor of 1 is exact and, unlike 1e-9, survives fp16.
        keep = mask.unsqueeze(-1).to(x.dtype)
        return (x * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1.0)

    def _mean_sqrt_len_tokens(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask.unsqueeze(-1).to(x.dtype)
        return (x * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1.0).sqrt()

    def _weightedmean(self, x: Tensor, mask: Tensor, whole: Tensor) -> Tensor:
        # Weights count from the first token on, of a prompt too: 1, 2, 3 ...
        weight = _positions(mask) + 1 - _first(whole).unsqueeze(-1)
        weight = (weight * mask).unsqueeze(-1).to(x.dtype)
        return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)

    def _lasttoken(self, x: Tensor, mask: Tensor) -> Tensor:
        last = ((_positions(mask) + 1) * mask).argmax(dim=1)
        return _state_at(x * mask.unsqueeze(-1).to(x.dtype), last)


def _positions(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device, dtype=mask.dtype).unsqueeze(0)


def _first(mask: Tensor) -> Tensor:
    # A plain argmax of the mask has ties, and which of them wins is not the same in every runtime.
    return ((mask.shape[1] - _positions(mask)) * mask).argmax(dim=1)


def _state_at(x: Tensor, index: Tensor) -> Tensor:
    at = index.view(-1, 1, 1).expand(-1, 1, x.shape[-1])
    return torch.gather(x, 1, at).squeeze(1)


class Dense(nn.Module):
    """sentence_transformers' Dense: activation(linear(x)), with its residual where the checkpoint has one."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class Truncate(nn.Module):
    """The first dimensions of the last axis: truncate_dim of sentence-transformers, which does not normalise again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


class Normalize(nn.Module):
    """Unit length over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, p=2.0, dim=-1)


class SpladePooling(nn.Module):
    """Logits [batch, length, vocabulary] -> [batch, vocabulary]: log(1 + relu) of each token, the largest or the sum."""

    def __init__(self, strategy: str, twice: bool) -> None:
        super().__init__()
        self.strategy = strategy
        self.twice = twice

    def forward(self, x: Tensor, attention_mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        x = torch.log1p(torch.relu(x * attention_mask.unsqueeze(-1).to(x.dtype)))
        x = torch.log1p(x) if self.twice else x
        return x.amax(dim=1) if self.strategy == "max" else x.sum(dim=1)


def embedding(model: nn.Module, chain: Chain, width: int | None = None) -> TextHead:
    """The encoder with the modules of a sentence-transformers directory behind it, weights loaded as float32.

    `width`: of the vectors of texts, where truncate_dim says one.
    Raises SourceError naming the module whose weights or activation cannot be used.
    """
    tokens = [_after(spec) for spec in chain.tokens]
    if chain.pooling is None:
        return TokenEmbedding(model, tokens, chain.states)
    after = [*map(_after, chain.after), *([Truncate(width)] if width is not None else [])]
    return SentenceEmbedding(model, _pooling(chain.pooling), after, tokens, chain.states)


def _pooling(spec: ModuleSpec) -> nn.Module:
    if spec.kind == "SpladePooling":
        twice = spec.config.get("activation_function") == "log1p_relu"
        return SpladePooling(str(spec.config.get("pooling_strategy") or "max"), twice)
    return Pooling(spec.pooling_modes())


def _after(spec: ModuleSpec) -> nn.Module:
    if spec.kind == "Normalize":
        return Normalize()
    if spec.kind == "Dense":
        return _dense(spec)
    _check_size(spec, spec.config["dimension"])
    norm = nn.LayerNorm(spec.config["dimension"])
    _load(norm, {k.removeprefix("norm."): v for k, v in _weights(spec).items()}, spec)
    return norm


def _dense(spec: ModuleSpec) -> Dense:
    size_in, size_out = spec.config["in_features"], spec.config["out_features"]
    _check_size(spec, size_in * size_out)
    linear = nn.Linear(size_in, size_out, bias=bool(spec.config.get("bias", True)))
    residual: nn.Module | None = None
    if spec.config.get("use_residual"):
        residual = nn.Identity() if size_in == size_out else nn.Linear(size_in, size_out, bias=False)
    dense = Dense(linear, _activation(spec), residual)
    _load(dense, _weights(spec), spec)
    return dense


def _check_size(spec: ModuleSpec, numbers: int) -> None:
    """Before memory is taken for them."""
    if numbers > (held := elements([spec.weights()])):
        raise SourceError(f"{spec.folder / 'config.json'} makes a {spec.kind} of {numbers} numbers; its weights hold {held}")


def _activation(spec: ModuleSpec) -> nn.Module:
    path = str(spec.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = path.rpartition(".")[2]
    kind = getattr(nn, name, None) if path.startswith("torch.nn.") else None
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        known = [*nn.modules.activation.__all__, "Identity"]
        raise SourceError(f"{spec.folder}: activation_function {path!r} is not a module of torch.nn{did_you_mean(name, known)}")
    try:
        return kind()
    except TypeError as error:
        raise SourceError(
            f"{spec.folder}: activation_function {path!r} takes settings ({error}); known: those that take none"
        ) from error


def _weights(spec: ModuleSpec) -> dict[str, Tensor]:
    path: Path = spec.weights()
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise SourceError(f"{path} is not a readable safetensors file: {error}; is the download complete?") from error
    found = read_pickle(path)
    if not all(isinstance(value, Tensor) for value in found.values()):
        raise SourceError(f"{path} holds more than tensors by name, it is no state_dict")
    return found


def read_pickle(path: Path) -> dict[str, Any]:
    """What a pickle holds by name, tensors most likely. No code is run: torch refuses a pickle that holds anything else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a file that it does not read
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise SourceError(f"{path} is not read, it is damaged or holds more than tensors (weights_only): {reason}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path} holds a {type(found).__name__}, not a state_dict of tensors")
    return found


def _load(module: nn.Module, weights: dict[str, Tensor], spec: ModuleSpec) -> None:
    try:
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise SourceError(f"{spec.weights()} does not fit the {spec.kind} module its config describes: {error}") from error
