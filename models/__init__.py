"""Model backends and the zoo. They import `edge_runtime.{ports,types,errors,clock}` and nothing else of the core."""

import os

# ONNX Runtime since 1.29 tells its maker which models run where, unless it finds this before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
