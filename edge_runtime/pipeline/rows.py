"""A model with several inputs on one window: each takes its rows of it, as the bundle's manifest says. One input needs none of this."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_runtime.bundle import Manifest
from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.fitting import fit_input
from edge_runtime.ports import LoadedModel
from edge_runtime.recurrence import Recurrent, Stream, Streams
from edge_runtime.types import Array, TensorInfo


def compose(model: LoadedModel, manifest: Manifest | None) -> LoadedModel:
    """The model as a pipeline runs it: its state carried, its inputs joined to one. Raises ModelRefused when the manifest does not fit."""
    if manifest is None:
        return model
    if manifest.state:
        model = Recurrent(model, manifest.state)
    if len(model.inputs) > 1 and manifest.inputs:
        rows = {port.name: max(1, len(port.channels)) for port in manifest.inputs}
        return Joined(model, [rows.get(info.name, 1) for info in model.inputs])
    return model


def pipeline_input(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], manifest: Manifest | None) -> TensorInfo:
    """The one input that a pipeline feeds, from what a probe told. Raises ModelRefused where there is none, or more than one."""
    composed = compose(_Outline(inputs, outputs), manifest)
    if len(composed.inputs) != 1:
        raise several_inputs(composed)
    return composed.inputs[0]


def several_inputs(model: LoadedModel) -> ModelRefused:
    """The refusal of a model that a window alone does not feed."""
    names = ", ".join(info.name for info in model.inputs)
    return ModelRefused(
        RefusalReason.WRONG_SHAPE,
        f"a pipeline feeds one input, the model has {len(model.inputs)}: {names}; "
        "its bundle's manifest can say which rows of the window each takes (`channels`) and which carry a state (`state`)",
    )


class _Outline:
    """A model of which only the tensors are known."""

    def __init__(self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        raise ModelRefused(RefusalReason.RUN_FAILED, "it is not loaded")

    def close(self) -> None:
        """Nothing is held."""


class Joined:
    """A model of several inputs as one of a single input [rows, values]: the first takes the first rows, and so on."""

    def __init__(self, model: LoadedModel, rows: Sequence[int]) -> None:
        """`rows` of each input. Raises ModelRefused(WRONG_SHAPE) unless all take as many values a row."""
        widths = {math.prod(max(size, 1) for size in info.shape) // count for info, count in zip(model.inputs, rows, strict=True)}
        if len(widths) != 1:
            shapes = ", ".join(f"{info.name} {list(info.shape)}" for info in model.inputs)
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE,
                f"inputs of one window take as many values a channel, these differ: {shapes}; correct `channels` in the manifest",
            )
        (width,) = widths
        ends = [sum(rows[: at + 1]) for at in range(len(rows))]
        self._slices = [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]
        self._fits = [fit_input((count, width), info) for info, count in zip(model.inputs, rows, strict=True)]
        self._model = model
        self.inputs = (TensorInfo("+".join(info.name for info in model.inputs), (ends[-1], width), "float32"),)
        self.outputs = model.outputs

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `LoadedModel.run`."""
        return self._model.run(self.split(inputs[0]))

    def split(self, window: Array) -> list[Array]:
        """The inputs of the model. They are reused by the next call."""
        return [fit(window[rows]) for fit, rows in zip(self._fits, self._slices, strict=True)]

    def close(self) -> None:
        self._model.close()

    def stream(self) -> Stream:
        """See `Streams.stream`; without a state it is the model itself."""
        return _JoinedStream(self, self._model.stream() if isinstance(self._model, Streams) else None)


class _JoinedStream:
    def __init__(self, joined: Joined, stream: Stream | None) -> None:
        self._joined = joined
        self._stream = stream

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        return self._joined.run(inputs) if self._stream is None else self._stream.run(self._joined.split(inputs[0]))

    def reset(self) -> None:
        if self._stream is not None:
            self._stream.reset()
