"""How many of the watermark's 64 bits are read after codecs and scaling, how visible it is, and what it costs.

    pip install scikit-image
    export OPENBLAS_NUM_THREADS=1  # so that times are those of one core
    python -m benchmarks.watermark_robustness --output benchmarks/results/watermark_robustness.json

Clips of the built-in model, enlarged, and windows that move over the photographs of scikit-image. False alarms are
counted in windows of unmarked photographs, and compared with the binomial distribution that the reader's bound rests
on. Knows pictures and encoders. Knows nothing of how the watermark is made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import mutoscope
import numpy as np
from mutoscope.provenance.watermark import BITS, LEAST_BITS, Marker, Reading, read
from mutoscope.terminal import format_table
from mutoscope_bench.difference import psnr_db
from mutoscope_bench.machine_facts import describe
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

SIZES = ((256, 256), (480, 832), (720, 1280))
FRAMES = 17
PROMPTS = (
    "a red circle moving right on a black background",
    "a large blue square growing on a white background",
    "a small yellow triangle bouncing on a green background",
    "a green square turning on a red background",
)
# Sharp and soft ones, of people, animals, things, surfaces and the sky.
PHOTOGRAPHS = (
    "astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina", "camera", "brick", "grass", "gravel",
    "moon",
)  # fmt: skip
WINDOWS = 4000  # of unmarked photographs
SEED = 20


@dataclass(frozen=True)
class Attack:
    """What happens to a clip: a part of each edge is cut off; encoders, one after the other, with the scale before."""

    name: str
    encoders: Sequence[tuple[str, dict[str, str], float]] = field(default=())
    cut: float = 0

    def apply(self, clip: Frames) -> Frames:
        """The clip as it comes out of the last encoder."""
        top, left = (int(length * self.cut) for length in clip.shape[1:3])
        clip = clip[:, top : clip.shape[1] - top, left : clip.shape[2] - left]
        for codec, options, scale in self.encoders:
            height, width = (round(length * scale) // 2 * 2 for length in clip.shape[1:3])
            clip = encoded(clip, codec, options, (height, width))
        return clip


def x264(crf: int, scale: float = 1) -> tuple[str, dict[str, str], float]:
    """The encoder at its default preset."""
    return "libx264", {"crf": str(crf)}, scale


def av1(crf: int, scale: float = 1) -> tuple[str, dict[str, str], float]:
    """SVT-AV1 at the preset that Mutoscope writes with."""
    return "libsvtav1", {"crf": str(crf), "preset": "6"}, scale


ATTACKS = (
    Attack("none"),
    Attack("x264 crf 23", [x264(23)]),
    Attack("x264 crf 28", [x264(28)]),
    Attack("x264 crf 35", [x264(35)]),
    Attack("AV1 crf 35", [av1(35)]),
    Attack("x0.75, x264 crf 23", [x264(23, 0.75)]),
    Attack("x0.5, x264 crf 23", [x264(23, 0.5)]),
    Attack("x264 crf 28, x0.75, x264 crf 28", [x264(28), x264(28, 0.75)]),
    Attack("5 % of each edge cut off", cut=0.05),
)


def encoded(clip: Frames, codec: str, options: dict[str, str], size: tuple[int, int]) -> Frames:
    """A clip after an encoder of FFmpeg in 8-bit 4:2:0, scaled to `(height, width)` before it, and decoded to RGB."""
    height, width = size
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream(codec, rate=16, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 16)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def photograph(name: str) -> Frames:
    """uint8 `[H, W, 3]`"""
    import skimage.data

    pixels = np.asarray(getattr(skimage.data, name)())
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def pan(picture: Frames, height: int, width: int, num_frames: int = FRAMES) -> Frames:
    """A window that moves by one pixel down and two to the right a frame, over a picture of just the size for it."""
    scale = max((height + num_frames) / picture.shape[0], (width + 2 * num_frames) / picture.shape[1])
    size = [-int(-length * scale // 1) for length in picture.shape[:2]]
    pixels = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return np.stack([pixels[n : n + height, 2 * n : 2 * n + width] for n in range(num_frames)])


def enlarged(clip: Frames, height: int, width: int) -> Frames:
    """By bicubic interpolation."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in clip])


def sources() -> dict[str, Callable[[int, int], Frames]]:
    """A clip of any size by its name."""
    found: dict[str, Callable[[int, int], Frames]] = {}
    with mutoscope.Pipeline.load() as pipeline:
        for seed, prompt in enumerate(PROMPTS):
            clip = pipeline.generate(prompt, seed=seed).frames
            found[f"built-in: {prompt}"] = lambda height, width, clip=clip: enlarged(clip, height, width)
    for name in PHOTOGRAPHS:
        found[f"photograph: {name}"] = lambda height, width, name=name: pan(photograph(name), height, width)
    return found


def measure_clip(clip: Frames) -> dict[str, Any]:
    """Bits read after each attack, PSNR, and seconds a frame of one clip."""
    height, width = clip.shape[1:3]
    started = time.perf_counter()
    marked = np.concatenate(list(Marker(height, width).marked([clip])))
    write_s = (time.perf_counter() - started) / len(clip)
    started = time.perf_counter()
    unmarked = read([clip])
    read_s = (time.perf_counter() - started) / len(clip)
    return {
        "psnr_db": round(psnr_db(marked, clip), 1),
        "worst_frame_psnr_db": round(min(psnr_db(*pair) for pair in zip(marked, clip, strict=True)), 1),
        "write_ms": round(1000 * write_s, 1),
        "read_ms": round(1000 * read_s, 1),
        "unmarked": unmarked.bits,
        "bits": {attack.name: read([attack.apply(marked)]).bits for attack in ATTACKS},
    }


def false_alarms(count: int = WINDOWS) -> dict[str, Any]:
    """Bits in windows of unmarked photographs, of random places and sizes, beside what chance gives."""
    random = np.random.default_rng(SEED)
    pictures = [photograph(name) for name in PHOTOGRAPHS]
    found = []
    for _ in range(count):
        picture = pictures[random.integers(len(pictures))]
        height, width = (int(random.integers(128, min(length, 512) + 1)) for length in picture.shape[:2])
        top, left = (
            int(random.integers(length - side + 1))
            for length, side in zip(picture.shape[:2], (height, width), strict=True)
        )
        found.append(read([picture[None, top : top + height, left : left + width]]).bits)
    return {
        "windows": count,
        "mean": round(statistics.mean(found), 2),
        "expected_mean": BITS / 2,
        "standard_deviation": round(statistics.pstdev(found), 2),
        "expected_standard_deviation": BITS**0.5 / 2,
        "most_bits": max(found),
        "found": sum(bits >= LEAST_BITS for bits in found),
        "share_from_44_bits": round(sum(bits >= 44 for bits in found) / count, 5),
        "expected_share_from_44_bits": round(Reading(44, 1).chance, 5),
        "chance_of_a_false_alarm": Reading(LEAST_BITS, 1).chance,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size and kind of clip: mean and least bits, and the share of clips in which the watermark is found."""
    summary = []
    for key in dict.fromkeys((tuple(row["size"]), row["source"].partition(":")[0]) for row in rows):
        own = [row for row in rows if (tuple(row["size"]), row["source"].partition(":")[0]) == key]
        for name in own[0]["bits"]:
            bits = [row["bits"][name] for row in own]
            summary.append(
                {
                    "size": "x".join(map(str, key[0])), "clips": key[1], "attack": name, "count": len(own),
                    "mean_bits": round(statistics.mean(bits), 1), "least_bits": min(bits),
                    "found": sum(each >= LEAST_BITS for each in bits),
                    "mean_psnr_db": round(statistics.mean(row["psnr_db"] for row in own), 1),
                    "least_psnr_db": min(row["worst_frame_psnr_db"] for row in own),
                    "write_ms": round(statistics.median(row["write_ms"] for row in own), 1),
                    "read_ms": round(statistics.median(row["read_ms"] for row in own), 1),
                }
            )  # fmt: skip
    return summary


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the result as JSON")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for height, width in SIZES:
        for name, make in sources().items():
            rows.append({"source": name, "size": [height, width]} | measure_clip(make(height, width)))
            print(rows[-1], flush=True)
    summary = summarise(rows)
    print(format_table(list(summary[0]), [[str(value) for value in row.values()] for row in summary]))
    facts = {"machine": describe(), "load_average_1_5_15_minutes": os.getloadavg(), "frames": FRAMES, "bits": BITS}
    facts |= {"threads_of_numpy": os.environ.get("OPENBLAS_NUM_THREADS", "all")}
    facts |= {"least_bits": LEAST_BITS, "false_alarms": false_alarms(), "summary": summary, "rows": rows}
    text = json.dumps(facts).replace('{"size"', '\n{"size"').replace('{"source"', '\n{"source"')
    arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
