"""Raspberry Pi boards as hardware: the driver `raspberry_pi`."""

from adapters.raspberry_pi.adapter import PiOptions, open_adapter

__all__ = ["PiOptions", "open_adapter"]
