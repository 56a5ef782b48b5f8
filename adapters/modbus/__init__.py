"""Devices on a Modbus line, RTU or TCP: the driver `modbus`."""

from adapters.modbus.adapter import ModbusAdapter, Options, open_adapter

__all__ = ["ModbusAdapter", "Options", "open_adapter"]
