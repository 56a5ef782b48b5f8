"""Quantized networks for microcontrollers: an ONNX or TensorFlow Lite model to the blob that the node's firmware runs in place."""
