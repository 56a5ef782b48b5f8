"""The adapter `microcontroller`: our sensor node on a UART, over pyserial."""

from adapters.microcontroller.adapter import open_adapter, open_node

__all__ = ["open_adapter", "open_node"]
