"""OpenVINO GenAI's pipeline for videos. Knows which models it takes, which Wan is not among.

Tried with 2026.4.1: the one class inside its `Text2VideoPipeline` is that of LTX-Video; given a checkpoint of Wan it
stops at the scheduler ("Unsupported value for 'scheduler' UniPCMultistepScheduler").
"""

from __future__ import annotations

from importlib.util import find_spec

from mutoscope_bench.implementation import Implementation, Work
from mutoscope_bench.measuring import Run


class OpenVinoGenAi(Implementation):
    """OpenVINO's own pipeline, which makes videos with LTX-Video alone and says so."""

    name = "openvino-genai"
    variants = ("default",)
    import_statement = "from mutoscope_engines.telemetry import openvino; openvino(); import openvino_genai"
    files_of = "checkpoint"

    def unavailable_because(self) -> str | None:
        return None

    def cannot(self, work: Work, precision: str) -> str | None:
        if work.kind not in ("clip", "experts"):
            return "its Text2VideoPipeline makes whole videos alone; its networks cannot be called one by one"
        installed = "" if find_spec("openvino_genai") else " (openvino-genai is not installed here)"
        return f"its Text2VideoPipeline takes LTX-Video alone; this bundle's family is {work.plan['family']}{installed}"

    def load(self, work: Work, precision: str) -> Run:
        raise NotImplementedError("there is no bundle of LTX-Video yet that both could run")
