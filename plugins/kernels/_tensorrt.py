"""A launch as a "quickly deployable plugin" of TensorRT (module tensorrt.plugin), compiled ahead of time.

TensorRT asks for the shapes and types of outputs, for the tactics (one a variant), and for PTX with its grid; the engine then
needs neither Triton nor Python. TensorRT-RTX takes no such plugin: its parser imports IPluginV3 plugins only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

from ._launch import Launch, Unsupported
from ._ptx import compile_launch

NAMESPACE = "bertc"
# TensorRT states how much shared memory a launch gets; that it also raises a kernel's limit above this is said nowhere.
SHARED = 48 * 1024
# trt.DataType -> (Triton's word, the word of AutoTuneCombination)
TYPES = {
    "HALF": ("fp16", "FP16"),
    "BF16": ("bf16", "BF16"),
    "FLOAT": ("fp32", "FP32"),
    "INT32": ("i32", "INT32"),
    "INT64": ("i64", "INT64"),
    "INT8": ("i8", "INT8"),
    "FP8": ("fp8e4nv", "FP8"),
}


def plugin_name(launch: Launch, present: Sequence[str]) -> str:
    """A plugin's inputs are fixed: one plugin for each set of what is absent."""
    absent = [t.name.strip("_") for t in launch.tensors().values() if t.name not in present]
    return "_without_".join([launch.name, *absent])


class Plugin:
    """A launch with what is present of its tensors, for one SM. `types` names the types of outputs that no input has."""

    def __init__(
        self,
        launch: Launch,
        present: Sequence[str],
        sm: int,
        *,
        types: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        launch.check_present(present)
        self.launch, self.sm, self.folder, self.types = launch, sm, folder, dict(types or {})
        self.inputs = [t for t in launch.inputs if t.name in present]
        self.outputs = [t for t in launch.outputs if t.name in present]
        self.name = plugin_name(launch, present)

    @property
    def id(self) -> str:
        return f"{NAMESPACE}::{self.name}"

    def register(self, trtp: Any) -> None:
        """With TensorRT: `trtp` is the module tensorrt.plugin."""
        described = trtp.TensorDesc
        inputs = [self._parameter(t.name, described) for t in self.inputs]
        attributes = [self._parameter(name, type(value)) for name, value in self.launch.attributes.items()]
        outputs = self._parameter("outputs", GenericAlias(tuple, (described,)))
        returned = GenericAlias(tuple, (described,) * len(self.outputs))

        def shapes(*descriptions: Any, **given: Any) -> Any:
            return self.describe(trtp, descriptions, given)

        def tactics(*given: Any) -> Any:
            return self.combinations(trtp, *self._split(given[:-1]), given[-1])

        def implementation(*given: Any) -> Any:
            return self.implement(trtp, *self._split(given[:-2]), given[-1])

        shapes.__signature__ = inspect.Signature([*inputs, *attributes], return_annotation=returned)  # type: ignore[attr-defined]
        tactics.__signature__ = inspect.Signature([*inputs, *attributes, outputs])  # type: ignore[attr-defined]
        tactic = self._parameter("tactic", int)
        kernel = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]  # name, PTX
        asked = inspect.Signature([*inputs, *attributes, outputs, tactic], return_annotation=kernel)
        implementation.__signature__ = asked  # type: ignore[attr-defined]
        trtp.register(self.id)(shapes)
        trtp.autotune(self.id)(tactics)
        trtp.aot_impl(self.id)(implementation)

    @staticmethod
    def _parameter(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)

    def _split(self, given: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Descriptions of inputs, attributes."""
        count = len(self.inputs)
        return given[:count], dict(zip(self.launch.attributes, given[count:], strict=True))

    def describe(self, trtp: Any, descriptions: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
        """What the outputs are: TensorRT's expressions of sizes, and types."""
        import tensorrt as trt

        dims = self._symbolic(descriptions, attributes)
        chosen = self._chosen(descriptions)
        known = {word: getattr(trt.DataType, name) for name, (word, _) in TYPES.items()}
        made = tuple(
            trtp.from_shape_expr(tuple(dims[dim] for dim in t.shape), known[self.launch.type_of(t, chosen)]) for t in self.outputs
        )
        return made if len(made) > 1 else made[0]

    def combinations(self, trtp: Any, descriptions: Sequence[Any], attributes: Mapping[str, Any], outputs: Any) -> Any:
        """One tactic, from 1 on, for each variant that fits the sizes, does not spill, and keeps to the shared memory."""
        made, refused = [], []
        for variant in self.launch.fitting(self._static(descriptions, attributes)):
            kernel = self._kernel(descriptions, attributes, variant)
            good = kernel.shared <= SHARED and not kernel.spilled
            made += [variant + 1] * good
            refused += [] if good else [f"variant {variant}: {kernel.shared} bytes of shared memory, {kernel.spilled} spilled"]
        if not made:
            raise Unsupported(f"{self.name} has no variant for sm{self.sm} within {SHARED} bytes: {'; '.join(refused)}")
        words = [TYPES[each.dtype.name][1] for each in (*descriptions, *outputs)]
        return [trtp.AutoTuneCombination(", ".join(words), "LINEAR", made)]

    def implement(self, trtp: Any, descriptions: Sequence[Any], attributes: Mapping[str, Any], tactic: int) -> Any:
        """Name, PTX, how to start it, scalars. Tactic 0 is TensorRT's own default."""
        static = self._static(descriptions, attributes)
        variant = tactic - 1 if tactic else self.launch.fitting(static)[0]
        kernel = self._kernel(descriptions, attributes, variant)
        dims = self._symbolic(descriptions, attributes)
        constants = self.launch.constants_of(static, attributes, variant)
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = self.launch.grid_of(dims, constants)
        params.block_x, params.shared_mem = kernel.threads, kernel.shared
        scalars = trtp.SymIntExprs(len(self.launch.scalars))
        for at, make in enumerate(self.launch.scalars.values()):
            scalars[at] = trtp.SymInt32(make(dims))
        return kernel.entry, kernel.ptx, params, scalars

    def _kernel(self, descriptions: Sequence[Any], attributes: Mapping[str, Any], variant: int) -> Any:
        shapes = self._shapes(descriptions, attributes)
        chosen, dims = self._chosen(descriptions), self._static(descriptions, attributes)
        dynamic = [name for name in self.launch.constants_of(dims, attributes, variant) if dims.get(name, 0) < 0]
        if dynamic:
            raise Unsupported(f"{self.name}: {', '.join(dynamic)} is dynamic, and has to be known when the kernel is compiled")
        return compile_launch(
            self.launch, self.sm, shapes, types=chosen, attributes=attributes, variant=variant, folder=self.folder
        )

    def _symbolic(self, descriptions: Sequence[Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
        shapes = {t.name: tuple(each.shape_expr) for t, each in zip(self.inputs, descriptions, strict=True)}
        return self.launch.dims(shapes, attributes)

    def _shapes(self, descriptions: Sequence[Any], attributes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Numbers, -1 where the size is dynamic: those are no constants of a kernel. Outputs out of inputs."""
        shapes = {t.name: tuple(map(int, each.shape)) for t, each in zip(self.inputs, descriptions, strict=True)}
        dims = self.launch.dims(shapes, attributes)
        return shapes | {t.name: tuple(dims[dim] for dim in t.shape) for t in self.outputs}

    def _static(self, descriptions: Sequence[Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
        return self.launch.dims(self._shapes(descriptions, attributes), attributes)

    def _chosen(self, descriptions: Sequence[Any]) -> dict[str, str]:
        """The choice of types that the inputs make; two types for one choice are an error."""
        chosen = dict(self.types)
        for tensor, each in zip(self.inputs, descriptions, strict=True):
            word = TYPES.get(each.dtype.name, (each.dtype.name, ""))[0]
            if tensor.type not in self.launch.types:
                if word != tensor.type:
                    raise Unsupported(f"{self.name}: {tensor.name} is {word}, wanted {tensor.type}")
            elif chosen.setdefault(tensor.type, word) != word:
                raise Unsupported(f"{self.name}: {tensor.name} is {word}, other tensors of its kind are {chosen[tensor.type]}")
        return chosen
