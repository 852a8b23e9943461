"""A trained checkpoint becomes a bundle. Knows torch and ONNX; shares with the runtime only the bundle."""

from __future__ import annotations

from contextlib import suppress

from mutoscope_engines import telemetry
from mutoscope_engines.onnxruntime.installation import DAMAGED

with suppress(*DAMAGED):  # a broken installation is told where it is used
    telemetry.onnxruntime()  # before a pipeline of Diffusers imports it, with its telemetry
