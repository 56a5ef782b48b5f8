"""The machine that the gateway runs on, as hardware: the driver `linux`."""

from adapters.linux.adapter import LinuxAdapter, Options, open_adapter

__all__ = ["LinuxAdapter", "Options", "open_adapter"]
