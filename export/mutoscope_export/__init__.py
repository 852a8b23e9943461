"""A trained checkpoint becomes a bundle. Knows torch and ONNX; shares with the runtime only the bundle."""

from contextlib import suppress

from mutoscope_engines import telemetry

with suppress(ImportError):  # a broken installation is told where it is used
    telemetry.onnxruntime()  # before a pipeline of Diffusers imports it, with its telemetry
