"""What an INT8 network has to learn: to answer as its float model does, and as the labels say where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_runtime.types import Array
from models.onnx import OnnxBackend
from models.quantize.judge import outputs
from models.quantize.qat.graph import QdqGraph
from models.quantize.samples import Samples

_LABELS_WEIGH = 0.3
_LOGITS_WEIGH = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs [n, ...], the float model's outputs [n, values] with the variance of each over all samples, labels [n] or None."""

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    variances: tuple[float, ...]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    @classmethod
    def of(cls, model: Path, samples: Samples) -> Batch:
        """All samples with the answers of the float model at `model`."""
        tensors = OnnxBackend().load(model).inputs
        feeds = list(samples.feeds(tensors))
        columns = [torch.from_numpy(np.concatenate([feed[i] for feed in feeds])) for i in range(len(tensors))]
        answers = outputs(model, samples)
        labels = None if samples.labels is None else torch.from_numpy(samples.labels.astype(np.int64))
        variances = tuple(float(answer.var(axis=0).mean()) or 1.0 for answer in answers)
        return cls(tuple(columns), tuple(torch.from_numpy(answer.astype(np.float32)) for answer in answers), variances, labels)

    def part(self, rows: Array) -> Batch:
        """Only these rows."""
        places = torch.from_numpy(rows)
        labels = None if self.labels is None else self.labels[places]
        return Batch(tuple(x[places] for x in self.inputs), tuple(y[places] for y in self.expected), self.variances, labels)


class Objective:
    """The loss over the tensors `wanted` of a graph: its outputs, or what lies before the softmax of a classifier."""

    def __init__(self, graph: QdqGraph, classifier: bool) -> None:
        makers = {output: node for node in graph.nodes for output in node.outputs}
        maker = makers.get(graph.outputs[0])
        self._classifier = classifier
        self._softmax = classifier and maker is not None and maker.operator == "Softmax"
        self.wanted: Sequence[str] = (maker.inputs[0],) if self._softmax and maker is not None else graph.outputs

    def loss(self, got: Sequence[Tensor], batch: Batch) -> Tensor:
        """Of the tensors `wanted`; comparable between batches of the same samples only."""
        given = [tensor.reshape(len(batch), -1) for tensor in got]
        if self._classifier and given[0].shape[1] > 1:
            return self._of_classes(given[0], batch)
        total: Any = 0.0
        for tensor, expected, variance in zip(given, batch.expected, batch.variances, strict=True):
            total = total + F.mse_loss(tensor, expected) / variance
        return total

    def _of_classes(self, logits: Tensor, batch: Batch) -> Tensor:
        teacher = batch.expected[0]
        shares = teacher if self._softmax else F.softmax(teacher, 1)
        loss = F.kl_div(F.log_softmax(logits, 1), shares, reduction="batchmean")
        if not self._softmax:
            loss = loss + _LOGITS_WEIGH * F.mse_loss(logits, teacher) / batch.variances[0]
        return loss if batch.labels is None else loss + _LABELS_WEIGH * F.cross_entropy(logits, batch.labels)
