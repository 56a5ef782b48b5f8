"""The adapter `coap`: our sensor node, or any CoAP device by a map of its resources, over aiocoap."""

from adapters.coap.adapter import open_adapter, open_node

__all__ = ["open_adapter", "open_node"]
