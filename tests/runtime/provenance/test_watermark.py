"""The watermark is read after codecs and scaling, is not seen, and is not found where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from mutoscope.provenance.watermark import BITS, LEAST_BITS, Marker, Reading, read, why_none

from tests.comparing import psnr_db
from tests.runtime.provenance.pictures import Frames, encoded, landscape

SIZES = [(256, 320), (480, 832)]


def marked(frames: Frames) -> Frames:
    return np.concatenate(list(Marker(*frames.shape[1:3]).marked([frames])))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_read_from_marked_frames_and_not_from_others(size: tuple[int, int]) -> None:
    frames = landscape(3, *size)
    assert read([marked(frames)]).bits >= 62  # a bit that would be seen is left out
    assert not read([frames]).found


@pytest.mark.parametrize("size", SIZES)
def test_it_is_read_after_x264_at_crf_23_and_at_three_quarters_of_the_size(size: tuple[int, int]) -> None:
    clip = marked(landscape(9, *size))
    assert read([encoded(clip, crf="23")]).bits >= 60
    smaller = (size[0] * 3 // 4, size[1] * 3 // 4)
    assert read([encoded(clip, size=smaller, crf="23")]).found


def test_no_frame_is_changed_beyond_a_psnr_of_36_db() -> None:
    busy = landscape(2)
    noise = np.random.default_rng(1).integers(0, 256, busy.shape, dtype=np.uint8)
    for clip in (busy, noise, np.zeros_like(busy), np.full_like(busy, 255)):
        for frame, changed in zip(clip, marked(clip), strict=True):
            assert psnr_db(frame, changed) > 35.9  # rounding adds up to 0.1
    assert psnr_db(np.zeros_like(busy), marked(np.zeros_like(busy))) > 42  # a calm picture is changed less


def test_on_a_plain_part_no_pixel_changes_by_more_than_one_level() -> None:
    """A texture of one level of 255 cannot be seen; the rough half hides as much as each frame may be changed."""
    frame = np.full((1, 256, 320, 3), 128, np.uint8)
    frame[:, :, 160:] = np.random.default_rng(2).integers(64, 192, (256, 160, 1), np.uint8)
    result = marked(frame)
    difference = np.abs(result.astype(int) - frame)
    assert difference[:, :, :144].max() == 1
    assert np.mean(difference[:, :, 176:] ** 2) > 5 * np.mean(difference[:, :, :144] ** 2)
    assert read([result]).found


def test_what_is_added_lies_between_the_orders_that_outlive_a_codec() -> None:
    """By NumPy's FFT of the mirrored picture, whose terms are the cosine transform's, in twice as many steps."""
    rough = np.repeat(np.random.default_rng(3).integers(64, 192, (1, 256, 320, 1), np.uint8), 3, axis=3)
    added = marked(rough)[0, :, :, 0].astype(float) - rough[0, :, :, 0]
    mirrored = np.block([[added, added[:, ::-1]], [added[::-1], added[::-1, ::-1]]])
    strength = np.abs(np.fft.fft2(mirrored))[:256, :320] ** 2
    distance = np.hypot(*np.mgrid[:256, :320])
    inside = (distance > 11) & (distance < 61)
    rounding = 1 / 12 / np.mean(added**2)  # white, over all orders
    assert strength[inside].sum() / strength.sum() > 1 - 1.2 * rounding
    assert strength[distance < 11].sum() / strength.sum() < rounding / 10


def test_chunk_by_chunk_is_the_same_as_all_at_once() -> None:
    frames = landscape(6)
    whole, parts = marked(frames), Marker(256, 320)

    def chunks() -> Iterator[Frames]:
        yield from (frames[:1], frames[1:1], frames[1:4], frames[4:])

    assert np.array_equal(np.concatenate(list(parts.marked(chunks()))), whole)
    assert parts.read() == read([whole[:4], whole[4:]]) == Reading(BITS, 6)


def test_a_chunk_is_marked_when_it_is_asked_for() -> None:
    taken = []

    def chunks() -> Iterator[Frames]:
        for number in range(3):
            taken.append(number)
            yield landscape(1)

    stream = Marker(256, 320).marked(chunks())
    next(stream)
    assert taken == [0]


IN_ANOTHER_PROCESS = """
import hashlib, sys
import numpy as np
from mutoscope.provenance.watermark import Marker
frames = np.random.RandomState(7).randint(0, 256, (1, 720, 1280, 3)).astype(np.uint8)
frames = frames // 4 + np.arange(1280, dtype=np.uint8)[:, None] // 2
print(hashlib.sha256(next(Marker(720, 1280).marked([frames])).tobytes()).hexdigest())
"""


def test_it_is_the_same_whatever_the_order_in_which_a_library_adds() -> None:
    """OpenBLAS takes other kernels for another processor, and other blocks for other threads; float32 differed."""
    found = set()
    for variables in ({"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "2"}, {"OPENBLAS_CORETYPE": "Prescott"}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("O")} | variables
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_the_chance_is_that_of_a_fair_coin() -> None:
    """By simulation for few heads, by counting all sequences for many."""
    tosses = np.random.default_rng(3).integers(0, 2, (200_000, BITS)).sum(axis=1)
    for bits in (28, 32, 36, 40):
        assert Reading(bits, 1).chance == pytest.approx(np.mean(tosses >= bits), abs=0.005)
    assert Reading(BITS, 1).chance == 2**-64 and Reading(0, 1).chance == pytest.approx(1)
    assert Reading(LEAST_BITS, 1).found and Reading(LEAST_BITS, 1).chance < 4e-6
    assert not Reading(LEAST_BITS - 1, 1).found


def test_bits_of_unmarked_pictures_are_spread_as_the_chance_says() -> None:
    found = [read([landscape(1, 128, 128, seed)]).bits for seed in range(200)]
    assert abs(np.mean(found) - BITS / 2) < 1.5  # 64 fair coins: 32, and 4 / sqrt(200) of error
    assert 3 < np.std(found) < 5
    assert max(found) < LEAST_BITS


@pytest.mark.parametrize("level", [0, 128, 255])
def test_no_bit_is_read_from_one_colour(level: int) -> None:
    assert read([np.full((1, 256, 256, 3), level, np.uint8)]) == Reading(0, 1)


def test_frames_with_the_opposite_of_it_are_told_to_hold_none() -> None:
    """The one picture that needs more change than nobody sees."""
    grey = np.full((1, 256, 256, 3), 128, np.uint8)
    opposite = np.clip(128 - 12 * (marked(grey).astype(int) - 128), 0, 255).astype(np.uint8)
    marker = Marker(256, 256)
    list(marker.marked([opposite]))
    assert not marker.read().found


@pytest.mark.parametrize(("height", "width"), list(product((255, 256), repeat=2)))
def test_a_size_below_256_is_told_why_it_gets_none(height: int, width: int) -> None:
    assert bool(why_none(height, width)) == (min(height, width) < 256)
    assert height * width == 65536 or f"{height}x{width} is smaller than 256x256" in why_none(height, width)


@pytest.mark.parametrize("chunks", [[], [np.zeros((0, 64, 64, 3), np.uint8)], [np.ones((2, 63, 400, 3), np.uint8)]])
def test_nothing_is_read_from_no_frames_or_from_tiny_ones(chunks: list[Frames]) -> None:
    assert read(chunks) == Reading(0, 0)
