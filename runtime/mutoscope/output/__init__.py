"""Which kinds of output there are, and one file for each: it writes `T` frames to a name it is given.

A writer is `write(target, frames, header, codec)`: it takes uint8 chunks `[n, H, W, 3]` one at a time. It may refuse
what its format cannot hold with an `OutputError`, before it takes the first; errors of the system and FFmpeg pass
through. Writers know nothing of temporary names. Importing this table imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A kind of output. The first codec is what "auto" means; `writer` is "module:function".

    A raw one is for programs: it holds the frames as they were made, and no words.
    """

    codecs: tuple[str, ...]
    writer: str
    raw: bool = False


FORMATS = {  # by ending; no ending is a folder
    ".mp4": Format(("h264", "av1"), "mutoscope.output.containers:write_mp4"),
    ".mov": Format(("h264",), "mutoscope.output.containers:write_mov"),
    ".mkv": Format(("h264", "av1", "vp9"), "mutoscope.output.containers:write_mkv"),
    ".webm": Format(("vp9", "av1"), "mutoscope.output.containers:write_webm"),
    ".gif": Format(("gif",), "mutoscope.output.gif:write"),
    ".webp": Format(("webp",), "mutoscope.output.webp:write"),
    ".png": Format(("png",), "mutoscope.output.png:write_picture"),
    ".npy": Format(("npy",), "mutoscope.output.npy:write", raw=True),
    "": Format(("png",), "mutoscope.output.png:write_folder"),
}
ENDINGS = ", ".join(filter(None, FORMATS))
AUTO = "auto"
CODECS = (AUTO, *dict.fromkeys(codec for kind in FORMATS.values() for codec in kind.codecs))
