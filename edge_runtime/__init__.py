"""The core of edge-runtime and the gateway process: sense, infer, decide, act and record without a network."""

__version__ = "0.1.0"
