"""What of a run is measured: every stage, what it means, and what tables and plots call it.

The one table of stages; results, tables and reports take their names from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mutoscope.bundle.contract import CONDITION, DECODE, DENOISE


@dataclass(frozen=True)
class Stage:
    """A stretch of time that has a row in the result."""

    meaning: str
    column: str = ""  # heading in a terminal's table; without one, it is only in the report
    stretch: str = ""  # of a whole run's bar in the report: its legend
    of_runtime: str = ""  # the name that the pipeline gives it


# In the order in which they happen; `forward` is of cases that are one network alone, `decode` also of such.
STAGES = {
    "import": Stage("importing the libraries, in a fresh process", "import"),
    "load_cold": Stage("loading the model, its files not in the page cache", "cold load"),
    "load_warm": Stage("loading the model, its files in the page cache", "load"),
    "first_run": Stage("the first run after loading: warms up, and compiles where something is compiled", "1st run"),
    "text_encoder": Stage("encoding the prompt", "text", "text encoding", CONDITION),
    "picture_encoder": Stage("encoding the picture, from pixels of the video's size", "picture", "picture encoding"),
    "step": Stage("one denoising step", "step"),
    "denoiser": Stage("all denoising steps", "", "denoising", DENOISE),
    "switch": Stage("from the end of one expert's last step to the begin of the next one's first", "switch"),
    "limited_switch": Stage("the same with a memory limit that has room for one expert", "limited switch"),
    "kept_switch": Stage("the same with both experts loaded before the clip", "kept switch"),
    "decode": Stage("latents to frames", "decode", "decoding", DECODE),
    "first_frame": Stage("from the request to the first frame in hand", "1st frame"),
    "encode": Stage("frames into a file", "encode", "encoding the file"),
    "whole_run": Stage("from the request to the finished file", "whole run"),
    "limited_run": Stage("the whole run with a memory limit that has room for one expert"),
    "kept_run": Stage("the whole run with everything loaded before it, both experts too", "kept run"),
    "batch": Stage("all videos of a batch, from the request to the last finished file", "batch"),
    "loop": Stage("the same videos by `Pipeline.generate`, one after the other", "loop"),
    "served": Stage("from sending the request to the server until it says that the video is finished", "served"),
    "direct": Stage("the same video without a server, from the request to the finished file", "direct"),
    "server_adds": Stage("what the server adds: the first less the second, of each run", "adds"),
    "forward": Stage("one forward of the denoiser, all guidance branches", "forward"),
}
# Of these, the first that a case has is what the case is about.
MAIN_STAGES = ("whole_run", "batch", "served", "forward", "decode")
_MAIN_STAGE = {
    "clip": "whole_run", "forward": "forward", "decode": "decode", "bulk": "batch", "server": "served",
    "experts": "whole_run",
}  # fmt: skip
IN_TURNS = ("bulk", "server", "experts")  # kinds of cases whose run goes several ways
OF_SEVERAL_VIDEOS = ("batch", "loop")  # their rows say how many are made in a second
# Left to right in a terminal's table: the whole work, then its parts, then what happens once.
COLUMNS = (
    *MAIN_STAGES, "loop", "direct", "server_adds", "kept_run", "switch", "limited_switch", "kept_switch",
    "text_encoder", "picture_encoder", "step", "encode", "first_frame", "first_run", "load_warm", "load_cold", "import",
)  # fmt: skip


def main_stage(kind: str, scenario: str) -> str:
    """The stage that is the whole work of a case of this kind."""
    return "batch" if scenario == "Offline" and kind == "clip" else _MAIN_STAGE[kind]
