"""Torch modules into ONNX graphs and their weight files."""
