"""Tunes the weights and ranges of an INT8 graph until it answers as its float model does. Judges nothing but when to stop.

Adam on one thread, smaller steps and an early stop by held-out samples, an end in time. The same seed gives the same bits, unless time
ran out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.progress import progress
from models.quantize.calibration import Ranges
from models.quantize.judge import noise_share, outputs
from models.quantize.qat.distillation import Batch, Objective
from models.quantize.qat.graph import read, read_constants, write_constants
from models.quantize.qat.network import Network
from models.quantize.samples import Samples

BATCH = 32
STEPS = 2000
CHECK_EVERY = 50
PATIENCE = 4
SLOWER, LEAST_SHARE = 0.3, 0.002
WEIGHT_RATE, RANGE_RATE = 2e-3, 2e-2

_MOST_SAMPLES, _MOST_HELD_OUT, _AT_ONCE = 20_000, 2_000, 64
_LIKE_RUNTIME = 0.05
_COMPARED = 8


@dataclass(frozen=True, slots=True)
class Material:
    """What training needs: the float graph, the INT8 graph to start from, samples to learn from and to stop by."""

    prepared: Path
    guide: Path
    fitted: Samples
    held_out: Samples
    classifier: bool
    longest_s: float


def tune(material: Material, target: Path, seed: int, clock: Callable[[], float] = time.monotonic) -> Ranges:
    """Writes the float graph with tuned weights to `target`; the learnt ranges of activations.

    Raises InputError when the graph holds what cannot be trained, before any training.
    """
    with _deterministic(seed):
        graph = read(material.guide)
        network = Network(graph, read_constants(material.prepared))
        _check(network, material)
        _train(network, Objective(graph, material.classifier), material, seed, clock)
        write_constants(material.prepared, target, network.learnt())
        return network.learnt_ranges()


def _train(network: Network, objective: Objective, material: Material, seed: int, clock: Callable[[], float]) -> None:
    """Ends with the state that did best on the held-out samples."""
    learn = Batch.of(material.prepared, material.fitted.part(slice(0, _MOST_SAMPLES)))
    held = Batch.of(material.prepared, material.held_out.part(slice(0, _MOST_HELD_OUT)))
    rates = _Rates(network.parameters())
    rates.judge(_held_out(network, objective, held))
    rows, end = _shuffled(np.random.default_rng(seed), len(learn)), clock() + material.longest_s
    with progress("training in INT8") as report:
        for number in range(1, STEPS + 1):
            batch = learn.part(next(rows))
            rates.optimizer.zero_grad()
            objective.loss(network.run(batch.inputs, objective.wanted), batch).backward()
            rates.optimizer.step()
            late = clock() > end
            if number % CHECK_EVERY == 0 or late:
                loss = _held_out(network, objective, held)
                going = rates.judge(loss) and not late
                report(number if going else STEPS, STEPS, f"held-out loss {loss:.4g}, best {rates.best:.4g}")
                if not going:
                    break
    rates.restore()


def _held_out(network: Network, objective: Objective, held: Batch) -> float:
    """The mean loss, a few samples at a time: activations of all of them would not fit into memory."""
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(held), _AT_ONCE):
            few = held.part(np.arange(first, min(len(held), first + _AT_ONCE)))
            total += float(objective.loss(network.run(few.inputs, objective.wanted), few)) * len(few)
    return total / len(held)


class _Rates:
    """Adam that goes back to the best state and on in smaller steps whenever the held-out loss stops falling, until they are too small."""

    def __init__(self, parameters: tuple[list[Tensor], list[Tensor]]) -> None:
        self.best = float("inf")
        self._weights, self._logarithms = parameters
        self._kept: list[Tensor] = []
        self._worse, self._share = 0, 1.0
        self.optimizer = self._adam()

    def judge(self, loss: float) -> bool:
        """Whether to go on."""
        if loss < self.best:
            self.best, self._worse = loss, 0
            self._kept = [parameter.detach().clone() for parameter in self._parameters()]
            return True
        self._worse += 1
        if self._worse >= PATIENCE:
            self.restore()
            self._worse, self._share = 0, self._share * SLOWER
            self.optimizer = self._adam()
        return self._share >= LEAST_SHARE

    def restore(self) -> None:
        """The best state so far."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters(), self._kept, strict=True):
                parameter.copy_(value)

    def _parameters(self) -> list[Tensor]:
        return [*self._weights, *self._logarithms]

    def _adam(self) -> torch.optim.Adam:
        groups = [(self._weights, WEIGHT_RATE), (self._logarithms, RANGE_RATE)]
        return torch.optim.Adam([{"params": tensors, "lr": rate * self._share} for tensors, rate in groups])


def _check(network: Network, material: Material) -> None:
    """Raises InputError when torch and onnxruntime do not agree on the graph to start from."""
    few = material.held_out.part(slice(0, _COMPARED))
    expected = outputs(material.guide, few)
    try:
        with torch.no_grad():
            got = network.run(Batch.of(material.guide, few).inputs, network.outputs)
        pairs = [(wanted, tensor.numpy().reshape(wanted.shape)) for wanted, tensor in zip(expected, got, strict=True)]
    except (RuntimeError, IndexError, TypeError, ValueError) as err:
        why = (str(err).splitlines() or [""])[0][:200]
        raise InputError(f"this graph does not train in batches ({why}); use --method ptq") from err
    if max(noise_share(*pair) for pair in pairs) > _LIKE_RUNTIME:
        raise InputError("torch and onnxruntime read this graph differently, training it would be guessing; use --method ptq")


def _shuffled(rng: np.random.Generator, count: int) -> Iterator[Array]:
    """Rows of one batch after the other, every sample once before any comes again."""
    while True:
        yield from np.array_split(rng.permutation(count), max(1, count // BATCH))


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """One thread and repeatable kernels, as before afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
