"""Texts to the inputs of an encoder, by numpy and tokenizers alone; tokenizer.json says how texts are cut and padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from tokenizers import Tokenizer


class TritonPythonModel:
    """TEXT [rows, 1], and TEXT_PAIR where pairs are meant, to ids, mask and types [rows, longest]."""

    def initialize(self, args: dict[str, str]) -> None:
        if int(np.__version__.partition(".")[0]) >= 2:
            pb.Logger.log_warn(
                f"numpy {np.__version__}: should texts end this process, the server's Python backend was built for numpy 1 "
                "(24.10 is): pip install 'numpy<2' in the Python that it runs"
            )
        config = json.loads(args["model_config"])
        self.outputs = {each["name"]: pb.triton_string_to_numpy(each["data_type"]) for each in config["output"]}
        parameters = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        self.prompt, self.typed = parameters.get("prompt", ""), parameters.get("typed", "yes") == "yes"
        self.tokenizer = Tokenizer.from_file(str(Path(args["model_repository"]) / args["model_version"] / "tokenizer.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            made = self._encoded(_texts(request, "TEXT"), _texts(request, "TEXT_PAIR"))
        except Exception as error:  # noqa: BLE001 - the tokenizer raises bare Exception; one wrong request must not fail the others
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor(name, made[name].astype(dtype)) for name, dtype in self.outputs.items()])

    def _encoded(self, texts: list[str] | None, pairs: list[str] | None) -> dict[str, np.ndarray]:
        if texts is None:
            raise ValueError("TEXT is missing")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts")
        texts = [self.prompt + text for text in texts]
        found = self.tokenizer.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        for at, each in enumerate(found):
            if not each.ids:
                raise ValueError(f"text {at} has no tokens; an encoder needs one or more")
        types = np.array([each.type_ids for each in found], np.int64)
        return {
            "input_ids": np.array([each.ids for each in found], np.int64),
            "attention_mask": np.array([each.attention_mask for each in found], np.int64),
            "token_type_ids": types if self.typed else np.zeros_like(types),
        }


def _texts(request: Any, name: str) -> list[str] | None:
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in tensor.as_numpy().ravel()]
