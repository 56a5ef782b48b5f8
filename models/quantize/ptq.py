"""Float ONNX to INT8 in QDQ form, with the settings that measure well: per channel, uint8 activations on x86, symmetric int8 elsewhere.

The library's defaults (int8 both, per tensor) gain nothing on x86 and lost 6.4 points on skewed channels. Takes ranges, finds none. The
only module that imports onnxruntime.quantization.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from models.qdq import OPSET, Target
from models.quantize.calibration import Ranges

OLDEST_OPSET = 13
"""The first whose QuantizeLinear has a scale per channel."""

_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_PASSED_THROUGH = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "MaxPool")
_COMPUTED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool")
_QUANTIZED = (*_WEIGHTED, *_PASSED_THROUGH, *_COMPUTED)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to quantize. `method` found the ranges; `keep_float` are names of nodes, `only` (when not empty) those to quantize."""

    target: Target = "x86"
    method: str = "minmax"
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whether the zero point of activations is 0."""
        return self.target != "x86"


def prepare(source: Path, target: Path, opset: int = OPSET) -> None:
    """Shapes inferred, constants and normalizations folded, in `opset`, every node named.

    Raises ModelRefused(UNSUPPORTED_FORMAT) for one that cannot be had in that opset, ModelRefused(LOAD_FAILED) for the rest.
    """
    onnx, quantization = _import()
    model = _in_opset(onnx, onnx.load(str(source), load_external_data=False), source.name, opset)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    try:
        onnx.save(model, str(target))
        with _quiet():
            quantization.shape_inference.quant_pre_process(str(target), str(target), skip_symbolic_shape=True)
    except Exception as err:  # border: onnx and onnxruntime raise whatever their C++ does
        raise ModelRefused(RefusalReason.LOAD_FAILED, f"{source.name} cannot be prepared: {_first_line(err)}") from err


def layers(prepared: Path) -> list[tuple[str, str]]:
    """(name, operator) of every node that INT8 kernels multiply in."""
    onnx, _ = _import()
    model = onnx.load(str(prepared))
    return [(node.name, node.op_type) for node in model.graph.node if node.op_type in _WEIGHTED]


def quantize(prepared: Path, target: Path, recipe: Recipe, ranges: Ranges) -> None:
    """Writes the INT8 graph. Raises InputError for unknown names in `keep_float`, ModelRefused when the library gives up."""
    onnx, quantization = _import()
    known = {name for name, _ in layers(prepared)}
    unknown = [name for name in recipe.keep_float if name not in known]
    if unknown:
        raise InputError(f"--keep-float: no layer `{unknown[0]}` (layers: {', '.join(sorted(known))})")
    source = onnx.shape_inference.infer_shapes(onnx.load(str(prepared)))
    kinds, limits = quantization.QuantType, {name: tuple(map(np.float32, pair)) for name, pair in ranges.items()}
    try:
        with _quiet():
            quantizer = quantization.QDQQuantizer(
                source,
                per_channel=recipe.per_channel,
                reduce_range=False,
                weight_qType=kinds.QInt8,
                activation_qType=kinds.QInt8 if recipe.symmetric else kinds.QUInt8,
                tensors_range=quantization.TensorsData(quantization.CalibrationMethod.MinMax, limits),
                nodes_to_quantize=_with_activations(source.graph, recipe.only),
                nodes_to_exclude=_with_activations(source.graph, recipe.keep_float),
                op_types_to_quantize=list(_QUANTIZED),
                extra_options={"ActivationSymmetric": recipe.symmetric, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
        quantizer.model.topological_sort()
        onnx.save(_plain(quantizer.model.model), str(target))
    except Exception as err:  # border: onnx and onnxruntime raise whatever their C++ does
        raise ModelRefused(RefusalReason.LOAD_FAILED, f"onnxruntime does not quantize it: {_first_line(err)}") from err


def _with_activations(graph: Any, names: Sequence[str]) -> list[str]:
    """These nodes and the Relu or Clip right behind each: together they are one layer, nothing is stored in between."""
    made = {output for node in graph.node if node.name in names for output in node.output}
    return [*names, *(node.name for node in graph.node if node.op_type in ("Relu", "Clip") and node.input[0] in made)]


def _plain(model: Any) -> Any:
    """Without the operator sets that no node uses, which the library's optimiser enters."""
    used = {"" if node.domain == "ai.onnx" else node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _in_opset(onnx: Any, model: Any, name: str, opset: int) -> Any:
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if version > opset:
        raise ModelRefused(
            RefusalReason.UNSUPPORTED_FORMAT, f"{name}: opset {version} is newer than {opset}; export it with {opset} or lower"
        )
    if version < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except Exception as err:  # border: the converter's C++
            why = f"{name}: opset {version} cannot be converted to {opset} ({_first_line(err)}); export it with {opset}"
            raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, why) from err
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    return model


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """The library prints its progress on stdout and warns on the root logger of what `prepare` has done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _import() -> tuple[Any, Any]:
    try:
        import onnx
        import onnx.version_converter
        import onnxruntime.quantization as quantization
        import onnxruntime.quantization.shape_inference  # noqa: F401
    except ImportError as err:
        raise MissingDependency("onnx and onnxruntime", "quantize") from err
    return onnx, quantization
