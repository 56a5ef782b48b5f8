"""Post-training quantization by onnxruntime, with the settings that measure well: QDQ, opset 21, per channel, U8S8 on x86, S8S8 elsewhere.

The library's defaults (S8S8, per tensor) gain nothing on x86 and lost 6.4 points on skewed channels. The only module that imports
onnxruntime.quantization.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import Array, TensorInfo
from models.qdq import OPSET, Target
from models.quantize.samples import Samples

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

_WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
_QUANTIZED = (
    *_WEIGHTED,
    "Relu",
    "Add",
    "Mul",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Clip",
    "Reshape",
    "Flatten",
    "Transpose",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to quantize. `keep_float` are names of nodes."""

    target: Target = "x86"
    method: Method = "minmax"
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def prepare(source: Path, target: Path) -> None:
    """Shapes inferred, constants folded, opset 21, every node named. Raises ModelRefused(LOAD_FAILED | UNSUPPORTED_FORMAT)."""
    onnx, quantization = _import()
    try:
        model = onnx.load(str(source), load_external_data=False)
        version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        if version > OPSET:
            raise ModelRefused(
                RefusalReason.UNSUPPORTED_FORMAT, f"{source.name}: opset {version} is newer than {OPSET}; export it with {OPSET}"
            )
        if version < OPSET:
            model = onnx.version_converter.convert_version(model, OPSET)
        model.ir_version = min(max(model.ir_version, 10), 10)
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        onnx.save(model, str(target))
        with _quiet():
            quantization.shape_inference.quant_pre_process(str(target), str(target), skip_symbolic_shape=True)
    except ModelRefused:
        raise
    except Exception as err:  # border: onnx and onnxruntime raise whatever their C++ does
        raise ModelRefused(RefusalReason.LOAD_FAILED, f"{source.name} cannot be prepared: {str(err).splitlines()[0][:300]}") from err


def layers(prepared: Path) -> list[tuple[str, str]]:
    """(name, operator) of every node with weights."""
    onnx, _ = _import()
    model = onnx.load(str(prepared))
    return [(node.name, node.op_type) for node in model.graph.node if node.op_type in _WEIGHTED]


def quantize(prepared: Path, target: Path, recipe: Recipe, calibration: Samples, tensors: Sequence[TensorInfo]) -> None:
    """Writes the INT8 graph. Raises InputError for unknown names in `keep_float`, ModelRefused when the library gives up."""
    _, quantization = _import()
    known = {name for name, _ in layers(prepared)}
    unknown = [name for name in recipe.keep_float if name not in known]
    if unknown:
        raise InputError(f"--keep-float: no layer `{unknown[0]}` (layers: {', '.join(sorted(known))})")
    kinds = quantization.QuantType
    methods = quantization.CalibrationMethod
    x86 = recipe.target == "x86"
    try:
        with _quiet():
            quantization.quantize_static(
                str(prepared),
                str(target),
                _reader(quantization, calibration, tensors),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=kinds.QUInt8 if x86 else kinds.QInt8,
                weight_type=kinds.QInt8,
                per_channel=recipe.per_channel,
                calibrate_method={"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[recipe.method],
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=list(recipe.keep_float),
                nodes_to_quantize=list(recipe.only) or None,
                extra_options={"ActivationSymmetric": not x86, "WeightSymmetric": True},
            )
    except Exception as err:  # border: onnx and onnxruntime raise whatever their C++ does
        raise ModelRefused(RefusalReason.LOAD_FAILED, f"onnxruntime does not quantize it: {str(err).splitlines()[0][:300]}") from err


def _reader(quantization: Any, samples: Samples, tensors: Sequence[TensorInfo]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped library
        def __init__(self) -> None:
            self._feeds = samples.feeds(tensors)

        def get_next(self) -> dict[str, Array] | None:
            feed = next(self._feeds, None)
            return None if feed is None else {tensor.name: array for tensor, array in zip(tensors, feed, strict=True)}

    return Reader()


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
