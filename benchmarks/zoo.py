"""Real architectures at a small random size, by name: what `bench_coverage` exports and fuses.

Every weight is drawn with one seed, biases and norms too: a zero bias hides an error, and costs no kernel. torch and transformers
are imported where a model is made, so that the list itself can be read without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

LENGTH, SAMPLES, FRAMES, VOCABULARY = 8, 1600, 64, 200
MASKS = ("none", "right", "left", "holed")  # of a batch; "none" attends to everything

SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TEXT = {**SIZE, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0}
MINI = {**TEXT, "hidden_size": 96, "num_attention_heads": 12}  # many narrow heads, as in MiniLM
OFFSET = {**TEXT, "type_vocab_size": 1, "pad_token_id": 1}  # positions count from the padding index on
NARROW = {**TEXT, "embedding_size": 32}
DISTIL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
MOBILE = {**TEXT, "intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 32, "num_feedforward_networks": 2}
SQUEEZE = {**TEXT, "embedding_size": 64, **dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups"), 2)}
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True}
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODERN = {**TEXT, **MARKS, "local_attention": 8, "global_attn_every_n_layers": 2}
BART = {
    "d_model": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    **{
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
    },
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 40}
XLM = {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": VOCABULARY, "max_position_embeddings": 40, "pad_index": 0}
FUNNEL = {"block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "vocab_size": VOCABULARY}
AUDIO = {
    **SIZE,
    "vocab_size": 20,
    "conv_dim": (32,) * 7,  # their kernels and strides are the real ones
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STABLE = {**AUDIO, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {**BART, "num_mel_bins": 16, "max_source_positions": FRAMES // 2, "max_target_positions": 40, "pad_token_id": 0}
VIT = {**SIZE, "image_size": 32, "patch_size": 8}
SEW = {**AUDIO, "squeeze_factor": 2, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One model: its class in transformers (or a function here), its config class and settings.

    `part` is a method that takes a piece of it (`get_encoder`); `inputs` the kind of feeds; `peer` the model_type that a user of
    onnxruntime.transformers.optimizer would choose; `family` the name under which bertc promises counts, where it is not the
    config's own.
    """

    model: str
    config: str
    settings: Mapping[str, Any]
    inputs: str = "text"
    part: str = ""
    peer: str = "bert"
    family: str = ""
    layers: int = 2
    heads: int = 4
    width: int = 64

    @property
    def attentions(self) -> int:
        """How many there are: a decoder looks at its source, too. FNet has none."""
        return 0 if self.model == "FNetModel" else self.layers * (2 if self.inputs == "cross" else 1)

    @property
    def is_head(self) -> bool:
        """A task's head on a model that is in the zoo itself, too."""
        return "For" in self.model


ROWS: Mapping[str, Row] = {
    "bert": Row("BertModel", "BertConfig", TEXT),
    "bert-classify": Row("BertForSequenceClassification", "BertConfig", {**TEXT, "num_labels": 3}, family="bert"),
    "bert-pair": Row("BertForNextSentencePrediction", "BertConfig", TEXT, family="bert"),
    "bert-answer": Row("BertForQuestionAnswering", "BertConfig", TEXT, family="bert"),
    "bert-masked-lm": Row("BertForMaskedLM", "BertConfig", TEXT, family="bert"),
    "bert-past": Row("BertLMHeadModel", "BertConfig", {**TEXT, "is_decoder": True}, "past"),
    "minilm": Row("minilm", "BertConfig", MINI, heads=12, width=96, family="bert"),
    "minilm-real": Row("minilm_real", "", {}, layers=6, heads=12, width=384, family="bert"),
    "distilbert": Row("DistilBertModel", "DistilBertConfig", DISTIL),
    "distilbert-tokens": Row(
        "DistilBertForTokenClassification", "DistilBertConfig", {**DISTIL, "num_labels": 5}, family="distilbert"
    ),
    "roberta": Row("RobertaModel", "RobertaConfig", OFFSET),
    "roberta-pair": Row("RobertaForSequenceClassification", "RobertaConfig", {**OFFSET, "num_labels": 1}, family="roberta"),
    "xlm-roberta": Row("XLMRobertaModel", "XLMRobertaConfig", OFFSET),
    "camembert": Row("CamembertModel", "CamembertConfig", OFFSET),
    "electra": Row("ElectraModel", "ElectraConfig", NARROW),
    "albert": Row("AlbertModel", "AlbertConfig", NARROW),
    "albert-masked-lm": Row("AlbertForMaskedLM", "AlbertConfig", NARROW, family="albert"),
    "mpnet": Row("MPNetModel", "MPNetConfig", {**TEXT, "pad_token_id": 1}),
    "deberta-v2": Row("DebertaV2Model", "DebertaV2Config", DEBERTA),
    "mobilebert": Row("MobileBertModel", "MobileBertConfig", MOBILE),
    "squeezebert": Row("SqueezeBertModel", "SqueezeBertConfig", SQUEEZE),
    "convbert": Row("ConvBertModel", "ConvBertConfig", {**NARROW, "conv_kernel_size": 3}),
    "modernbert": Row("ModernBertModel", "ModernBertConfig", MODERN),
    "bart-encoder": Row("BartModel", "BartConfig", BART, part="get_encoder", peer="bart", family="bart"),
    "mbart-encoder": Row("MBartModel", "MBartConfig", BART, part="get_encoder", peer="bart", family="mbart"),
    "t5-encoder": Row("T5EncoderModel", "T5Config", T5, peer="t5", family="t5"),
    "bart-decoder": Row("BartModel", "BartConfig", BART, "cross", part="get_decoder", peer="bart"),
    "gpt2": Row("GPT2Model", "GPT2Config", GPT2, peer="gpt2"),
    "gpt2-past": Row("GPT2LMHeadModel", "GPT2Config", GPT2, "past", peer="gpt2"),
    "wav2vec2": Row("Wav2Vec2Model", "Wav2Vec2Config", AUDIO, "audio"),
    "wav2vec2-ctc": Row("Wav2Vec2ForCTC", "Wav2Vec2Config", STABLE, "masked-audio", family="wav2vec2"),
    "hubert": Row("HubertModel", "HubertConfig", AUDIO, "audio"),
    "wavlm": Row("WavLMModel", "WavLMConfig", AUDIO, "audio"),
    "whisper-encoder": Row("WhisperModel", "WhisperConfig", WHISPER, "mel", part="get_encoder", peer="bart", family="whisper"),
    "own": Row("own", "", {}),
    # More than a list of favourites: whatever else transformers ships that reads masked text or audio.
    "bert-generation": Row("BertGenerationEncoder", "BertGenerationConfig", TEXT),
    "big-bird": Row("BigBirdModel", "BigBirdConfig", {**TEXT, "attention_type": "original_full"}),
    "canine": Row("CanineModel", "CanineConfig", {**TEXT, "downsampling_rate": 4, "local_transformer_stride": 8}),
    "data2vec-audio": Row("Data2VecAudioModel", "Data2VecAudioConfig", AUDIO, "audio"),
    "data2vec-text": Row("Data2VecTextModel", "Data2VecTextConfig", OFFSET),
    "dpr": Row("DPRQuestionEncoder", "DPRConfig", TEXT),
    "ernie": Row("ErnieModel", "ErnieConfig", TEXT),
    "flaubert": Row("FlaubertModel", "FlaubertConfig", XLM),
    "fnet": Row("FNetModel", "FNetConfig", TEXT, "unmasked"),
    "funnel": Row("FunnelBaseModel", "FunnelConfig", FUNNEL),
    "layoutlm": Row("LayoutLMModel", "LayoutLMConfig", TEXT),
    "megatron-bert": Row("MegatronBertModel", "MegatronBertConfig", TEXT),
    "nomic-bert": Row("NomicBertModel", "NomicBertConfig", TEXT),
    "nystromformer": Row("NystromformerModel", "NystromformerConfig", {**TEXT, "segment_means_seq_len": 40, "num_landmarks": 40}),
    "rembert": Row("RemBertModel", "RemBertConfig", {**TEXT, "input_embedding_size": 32}),
    "roberta-prelayernorm": Row("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", OFFSET),
    "roformer": Row("RoFormerModel", "RoFormerConfig", NARROW),
    "sew": Row("SEWModel", "SEWConfig", SEW, "audio"),
    "splinter": Row("SplinterModel", "SplinterConfig", TEXT),
    "unispeech": Row("UniSpeechModel", "UniSpeechConfig", AUDIO, "audio"),
    "vit": Row("ViTModel", "ViTConfig", VIT, "image", peer="vit"),
    "xlm": Row("XLMModel", "XLMConfig", XLM),
    "xlnet": Row(
        "XLNetModel", "XLNetConfig", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": VOCABULARY}
    ),
}

EVERY_EXPORTER = ("bert", "own")  # of these, goldens of every exporter are kept
# Graphs like another's up to names, or with a head that nothing is fused in: in the table, without a golden.
TABLE_ONLY = (
    *("minilm-real", "bert-classify", "bert-pair", "bert-answer", "distilbert-tokens", "roberta-pair"),
    *("data2vec-audio", "data2vec-text", "dpr", "ernie", "splinter", "unispeech"),
    "canine",  # no export of it runs at another size
)
CLAIMED = ("dynamo-sdpa", "dynamo-eager")  # exporters for which a family's promise (compiler/fusions/families.py) is held


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model: its numpy dtype and dimensions, a name for a dynamic one."""

    dtype: str
    dims: tuple[int | str, ...]


TOKENS = Input("int64", ("batch", "length"))
HEADS, HEAD = 4, 16


def family(name: str) -> str:
    """The family whose promise holds for a model: its row's, else its own name."""
    return ROWS[name].family or name


def inputs(name: str, *, types: bool = False) -> dict[str, Input]:
    """What a model is fed, in the order of its forward. `types`: it takes token types."""
    kind = ROWS[name].inputs
    masked = {"input_ids": TOKENS, "attention_mask": TOKENS}
    kinds = {
        "text": masked,
        "unmasked": {"input_ids": TOKENS},
        "past": {
            "input_ids": TOKENS,
            "attention_mask": Input("int64", ("batch", "total")),
            **{
                f"past_{i}_{what}": Input("float32", ("batch", HEADS, "past", HEAD))
                for i in range(2)
                for what in ("key", "value")
            },
        },
        "cross": {
            **masked,
            "encoder_hidden_states": Input("float32", ("batch", "source", 64)),
            "encoder_attention_mask": Input("int64", ("batch", "source")),
        },
        "audio": {"input_values": Input("float32", ("batch", "samples"))},
        "masked-audio": {
            name: Input(t, ("batch", "samples")) for name, t in (("input_values", "float32"), ("attention_mask", "int64"))
        },
        "mel": {"input_features": Input("float32", ("batch", 16, FRAMES))},
        "image": {"pixel_values": Input("float32", ("batch", 3, 32, 32))},
    }
    return kinds[kind] | ({"token_type_ids": TOKENS} if types else {})


def feeds(
    given: Mapping[str, Input], mask: str, *, batch: int = 3, step: int = 3, seed: int = 0, padding: int = 0
) -> dict[str, np.ndarray]:
    """Feeds for these inputs at a size that no exporter saw, under one of MASKS."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "length": LENGTH + step, "samples": SAMPLES + 160 * step, "past": 4 + step, "source": 6 + step}
    sizes["total"] = sizes["past"] + sizes["length"]
    made: dict[str, np.ndarray] = {}
    for name, each in given.items():
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in each.dims)
        if name.endswith("attention_mask"):
            made[name] = masked(mask, *shape)
        elif each.dtype == "int64":
            made[name] = rng.integers(0, 2, shape) if name == "token_type_ids" else rng.integers(5, VOCABULARY - 1, shape)
        else:
            made[name] = rng.standard_normal(shape).astype(np.float32)
    places = made.get("attention_mask")
    if places is not None and "input_ids" in made and places.shape == made["input_ids"].shape:
        made["input_ids"] = np.where(places > 0, made["input_ids"], padding)
    return made


def masked(kind: str, batch: int, length: int) -> np.ndarray:
    """int64 [batch, length]: 1 where attended to. The first row is whole, each further one has more padding."""
    places = np.ones((batch, length), np.int64)
    for row in range(1, batch):
        cut = length * row // (batch + 1)
        if kind == "right":
            places[row, length - cut :] = 0
        elif kind == "left":
            places[row, :cut] = 0
        elif kind == "holed":
            places[row, row::3] = 0
    return places
