"""Simulated pumps with bearings that can be broken: the driver `simulated`. A product feature, not a test mock."""

from adapters.simulated.adapter import FAULTS, Options, SimulatedAdapter, open_adapter

__all__ = ["FAULTS", "Options", "SimulatedAdapter", "open_adapter"]
