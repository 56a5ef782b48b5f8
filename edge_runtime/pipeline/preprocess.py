"""The preprocessing steps of a pipeline: those that a model's manifest speaks too (`edge_runtime.steps`)."""

from __future__ import annotations

from edge_runtime.steps import SMALL, Chain, Kernel, NotFinite, Shape, Step, is_finite, known_steps, output_shape, parse_steps

__all__ = ["SMALL", "Chain", "Kernel", "NotFinite", "Shape", "Step", "is_finite", "known_steps", "output_shape", "parse_steps"]
