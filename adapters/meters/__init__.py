"""Electricity, gas, water and heat meters that speak by themselves over a serial line: the driver `meter`."""

from adapters.meters.adapter import MeterAdapter, Options, open_adapter

__all__ = ["MeterAdapter", "Options", "open_adapter"]
