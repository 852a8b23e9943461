"""Each module measures one thing, in processes of its own."""

from __future__ import annotations

import os

from mutoscope_engines.telemetry import OPT_OUT

os.environ.update(OPT_OUT)  # Diffusers, beside which some of them measure, imports ONNX Runtime by itself
