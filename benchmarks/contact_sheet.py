"""Draws the README's contact sheet: frames of eight prompts from the built-in model, every one with its prompt.

    python -m benchmarks.contact_sheet docs/contact_sheet.png

The prompts, one a motion, and the seed are fixed: nothing is picked by hand.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mutoscope
import numpy as np
from PIL import Image, ImageDraw

SEED = 7
COLUMNS = 8
LABEL_HEIGHT = 16
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the picture, such as docs/contact_sheet.png")
    output = parser.parse_args().output
    strips = []
    with mutoscope.Pipeline.load() as pipeline:
        for prompt in PROMPTS:
            frames = pipeline.generate(prompt, seed=SEED).frames
            chosen = frames[np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]
            strip = Image.fromarray(np.concatenate(list(chosen), axis=1))
            labelled = Image.new("RGB", (strip.width, strip.height + LABEL_HEIGHT), "white")
            labelled.paste(strip, (0, LABEL_HEIGHT))
            ImageDraw.Draw(labelled).text((2, 2), prompt, fill="black")
            strips.append(np.asarray(labelled))
    Image.fromarray(np.concatenate(strips)).save(output, optimize=True)


if __name__ == "__main__":
    main()
