"""What the built-in model can be asked for: `a [small|large] COLOUR SHAPE MOTION on a BACKGROUND background`.

Knows words and colours. Knows nothing of pixels, tensors or training.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 50),
    "purple": (150, 60, 200),
    "white": (245, 245, 245),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 220),
}
LEARNED_COLOURS = {"lime": (180, 240, 120)}  # that the built-in model does not know: a LoRA brings them
EVERY_COLOUR = COLOURS | LEARNED_COLOURS
SHAPES = ("circle", "square", "triangle", "ring")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "bouncing",
    "staying still",
)
BACKGROUNDS = {"black": (12, 12, 16), "gray": (120, 120, 125), "navy": (15, 25, 70), "brown": (90, 60, 35)}
SIZES = (None, "small", "large")

DESCRIPTION = (
    "a [small|large] COLOUR SHAPE MOTION on a BACKGROUND background; "
    f"COLOUR: {', '.join(COLOURS)}; SHAPE: {', '.join(SHAPES)}; MOTION: {', '.join(MOTIONS)}; "
    f"BACKGROUND: {', '.join(BACKGROUNDS)}"
)

# The ways of saying a scene that training draws from; the first is the grammar itself.
PHRASINGS = (
    "a {thing} {motion} on a {background} background",
    "{thing} {motion} on a {background} background",
    "a {thing} {motion}, {background} background",
    "a {thing} is {motion} on a {background} background",
    "on a {background} background, a {thing} {motion}",
)


@dataclass(frozen=True)
class Scene:
    """One sentence of the grammar, by its words."""

    colour: str
    shape: str
    motion: str
    background: str
    size: str | None = None

    def prompt(self, phrasing: int = 0) -> str:
        """The scene in words. The article is always "a", as the grammar says; training also writes "an orange"."""
        thing = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return PHRASINGS[phrasing].format(thing=thing, motion=self.motion, background=self.background)

    @property
    def held_out(self) -> bool:
        """True for the tenth of the combinations that the denoiser never sees in training, whatever the size word."""
        words = f"{self.colour} {self.shape} {self.motion} {self.background}"
        return zlib.crc32(words.encode()) % 10 == 0


def all_scenes(colours: Iterable[str] = COLOURS) -> list[Scene]:
    """Every scene of the grammar in these colours, in a fixed order."""
    return [Scene(*words) for words in itertools.product(colours, SHAPES, MOTIONS, BACKGROUNDS, SIZES)]


def calibration_scenes() -> list[Scene]:
    """Eight scenes that share few words, for the ranges of what runs in eight bits."""
    return all_scenes()[371::343]


def calibration_prompts() -> list[str]:
    """Those scenes in words."""
    return [scene.prompt() for scene in calibration_scenes()]


def prompt_pattern() -> str:
    """A regular expression that a whole prompt matches when the built-in model was trained for it."""

    def one_of(words: Iterable[str]) -> str:
        return f"(?:{'|'.join(words)})"

    thing = f"(?:(?:small|large) )?{one_of(COLOURS)} {one_of(SHAPES)}"
    alternatives = (
        phrasing.replace("a {thing}", "an? {thing}").format(
            thing=thing, motion=one_of(MOTIONS), background=one_of(BACKGROUNDS)
        )
        for phrasing in PHRASINGS
    )
    # Training capitalises first letters, so the first may be either; the rest is lower case.
    return f"(?=[A-Za-z][^A-Z]*$)(?i:{'|'.join(alternatives)})\\.?"


def sample_scenes(count: int, rng: np.random.Generator, scenes: list[Scene]) -> list[Scene]:
    """As many scenes as asked for, each drawn from all of them."""
    return [scenes[i] for i in rng.integers(len(scenes), size=count)]
