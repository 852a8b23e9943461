"""A trained checkpoint becomes a bundle. Knows torch and ONNX; shares with the runtime only the bundle."""
