"""Float ONNX to INT8, measured and gated, on a workstation (extra `quantize`). Never imported by a gateway."""
