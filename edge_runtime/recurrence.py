"""A model whose own outputs are inputs of its next run: the state is carried here, outside of the runtime. Outsiders may import it.

A state starts at zero (the real value; a quantized input gets its zero point). What ends a sequence is the caller's to say: `reset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel
from edge_runtime.steps import is_finite
from edge_runtime.types import Array, TensorInfo


class Stream(Protocol):
    """One sequence of runs of a model."""

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """As `LoadedModel.run`, from the state that the last run left."""
        ...

    def reset(self) -> None:
        """The next run starts from zero."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A loaded model with a state. Its own `run` starts from zero every time."""

    def stream(self) -> Stream:
        """A sequence of its own: streams of one model do not see each other's state."""
        ...


class Recurrent:
    """A loaded model without its state: `inputs` and `outputs` are those that the outside gives and gets. `state`: output to input."""

    def __init__(self, model: LoadedModel, state: Mapping[str, str]) -> None:
        """Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE) when a state does not fit the graph."""
        outputs, inputs = ({info.name: (at, info) for at, info in enumerate(infos)} for infos in (model.outputs, model.inputs))
        self._carried = [_carried(outputs, inputs, source, target) for source, target in state.items()]
        self._model = model
        fed = {target for _, target, _ in self._carried}
        made = {source for source, _, _ in self._carried}
        self._given = [at for at in range(len(model.inputs)) if at not in fed]
        self._got = [at for at in range(len(model.outputs)) if at not in made]
        self.inputs = tuple(model.inputs[at] for at in self._given)
        self.outputs = tuple(model.outputs[at] for at in self._got)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `LoadedModel.run`; always from a state of zeros."""
        return self.stream().run(inputs)

    def stream(self) -> Stream:
        """See `Streams.stream`."""
        return _Carrier(self._model, self._given, self._got, self._carried)

    def close(self) -> None:
        self._model.close()


class _Carrier:
    """Keeps the state of one sequence."""

    def __init__(self, model: LoadedModel, given: list[int], got: list[int], carried: list[tuple[int, int, Array]]) -> None:
        self._model = model
        self._given = given
        self._got = got
        self._carried = carried
        self._feeds: list[Array] = [np.empty(0)] * len(model.inputs)
        self.reset()

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        if len(inputs) != len(self._given):
            names = ", ".join(self._model.inputs[at].name for at in self._given)
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE, f"the model takes {len(self._given)} inputs besides its state ({names}), got {len(inputs)}"
            )
        for at, array in zip(self._given, inputs, strict=True):
            self._feeds[at] = array
        outputs = self._model.run(self._feeds)
        for source, target, _ in self._carried:
            self._feeds[target] = self._finite(outputs[source], source)
        return [outputs[at] for at in self._got]

    def reset(self) -> None:
        for _, target, zeros in self._carried:
            self._feeds[target] = zeros

    def _finite(self, state: Array, source: int) -> Array:
        """A state that is no number would make every later run one."""
        if state.dtype.kind == "f" and not is_finite(state.reshape(-1)):
            self.reset()
            raise ModelRefused(
                RefusalReason.RUN_FAILED, f"state `{self._model.outputs[source].name}` is NaN or infinite; it starts from zero again"
            )
        return state


def _carried(
    outputs: Mapping[str, tuple[int, TensorInfo]], inputs: Mapping[str, tuple[int, TensorInfo]], source: str, target: str
) -> tuple[int, int, Array]:
    """Which output feeds which input, and the zeros that it starts from."""
    for name, known, what in ((source, outputs, "output"), (target, inputs, "input")):
        if name not in known:
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE, f"state: the graph has no {what} `{name}` (it has: {', '.join(known)}); correct the manifest"
            )
    (at_source, made), (at_target, taken) = outputs[source], inputs[target]
    alike = len(made.shape) == len(taken.shape) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(made.shape, taken.shape, strict=True)
    )
    if not alike:
        raise ModelRefused(
            RefusalReason.WRONG_SHAPE, f"state: output `{source}` has shape {list(made.shape)}, input `{target}` takes {list(taken.shape)}"
        )
    real = [info.dtype.startswith("float") or bool(info.scale or info.axis_scales) for info in (made, taken)]
    if real[0] != real[1] or (not real[0] and made.dtype != taken.dtype):
        raise ModelRefused(RefusalReason.WRONG_DTYPE, f"state: output `{source}` is {made.dtype}, input `{target}` takes {taken.dtype}")
    dtype = taken.dtype if taken.dtype.startswith("float") or not real[1] else "float32"
    return at_source, at_target, np.zeros([max(size, 1) for size in taken.shape], dtype)
