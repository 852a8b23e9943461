"""A trained checkpoint becomes a bundle. Knows torch and ONNX; shares with the runtime only the bundle."""

from mutoscope_engines import telemetry

telemetry.onnxruntime()  # before a pipeline of Diffusers imports it, with its telemetry
