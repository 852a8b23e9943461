"""Makes the README's animated strip: the clips of eight prompts from the built-in model, side by side, in a loop.

    python -m benchmarks.strip docs/strip.webp
    python -m benchmarks.strip docs/strip-pictures.webp --from-pictures

The second strip goes on from the last frames of the first, in the same order. The prompts, one for each motion, and the
seed are fixed: no clip is chosen for its looks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mutoscope
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SEED = 7
COLUMNS = 4
SCALE = 2  # clips are shown at twice their size
GAP = 4
LABEL_HEIGHT = 32  # two lines of text and a gap
PROMPTS = (
    "a red circle moving right on a black background",
    "a large green square moving left on a gray background",
    "a yellow triangle moving up on a navy background",
    "a small white ring moving down on a brown background",
    "a purple circle growing on a gray background",
    "an orange square shrinking on a black background",
    "a cyan triangle bouncing on a navy background",
    "a large blue ring staying still on a brown background",
)
NEXT_PROMPTS = (
    "a red circle moving left on a black background",
    "a large green square moving right on a gray background",
    "a yellow triangle moving down on a navy background",
    "a small white ring moving up on a brown background",
    "a purple circle shrinking on a gray background",
    "an orange square growing on a black background",
    "a cyan triangle staying still on a navy background",
    "a large blue ring bouncing on a brown background",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the animation, such as docs/strip.webp")
    parser.add_argument(
        "--from-pictures", action="store_true", help="clips that begin with the last frames of the others"
    )
    arguments = parser.parse_args()
    prompts = NEXT_PROMPTS if arguments.from_pictures else PROMPTS
    with mutoscope.Pipeline.load() as pipeline:
        clips = [pipeline.generate(prompt, seed=SEED).frames for prompt in PROMPTS]
        if arguments.from_pictures:
            requests = [mutoscope.VideoRequest(prompt=prompt, image=clip[-1], seed=SEED)
                        for prompt, clip in zip(prompts, clips, strict=True)]  # fmt: skip
            clips = [pipeline.generate(request).frames for request in requests]
        fps = float(pipeline.plan(PROMPTS[0]).geometry.fps)
    pictures = [picture(frames, prompts) for frames in zip(*clips, strict=True)]
    pictures[0].save(
        arguments.output,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=80,
        method=6,
    )


def picture(frames: tuple[np.ndarray, ...], prompts: tuple[str, ...]) -> Image.Image:
    """One frame of every clip, uint8 `[H, W, 3]` each, in rows of `COLUMNS`, with the prompts below them."""
    height, width = (SCALE * size for size in frames[0].shape[:2])
    rows = -(-len(frames) // COLUMNS)
    step_x, step_y = width + GAP, height + LABEL_HEIGHT
    sheet = Image.new("RGB", (COLUMNS * step_x - GAP, rows * step_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (frame, prompt) in enumerate(zip(frames, prompts, strict=True)):
        left, top = index % COLUMNS * step_x, index // COLUMNS * step_y
        sheet.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        draw.multiline_text(
            (left, top + height + 2), prompt.replace(" on ", "\non "), fill="black", font=font, spacing=2
        )
    return sheet


if __name__ == "__main__":
    main()
