"""Clips that begin with a picture: where the shape goes from any place, and what the prompt may say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from mutoscope_export.demo.grammar import MOTIONS
from mutoscope_export.demo.pictures import Place, continue_from, draw_pictured_clip
from mutoscope_export.demo.renderer import HEIGHT, NUM_FRAMES, WIDTH

PLACES = [Place(x, y, radius) for x, y, radius in product((25.0, 48.0, 70.0), (25.0, 48.0, 70.0), (5.5, 12.0, 22.5))]


def _paths(motion):
    for seed, place in enumerate(PLACES):
        yield place, continue_from(place, motion, np.random.default_rng(seed))


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_path_begins_at_the_picture_and_stays_inside_the_frame(motion):
    for place, path in _paths(motion):
        begin = [values[0] for values in (path.x, path.y, path.radius)]
        np.testing.assert_allclose(begin, [place.x, place.y, place.radius], atol=1e-4)
        for centre, side in ((path.x, WIDTH), (path.y, HEIGHT)):
            assert (centre - path.radius > 1.9).all() and (centre + path.radius < side - 1.9).all()


@pytest.mark.parametrize(
    ("motion", "across", "down"),
    [("moving right", 1, 0), ("moving left", -1, 0), ("moving down", 0, 1), ("moving up", 0, -1)],
)
def test_a_shape_moves_most_of_its_way_to_the_border_and_nowhere_else(motion, across, down):
    for place, path in _paths(motion):
        along, aside = (path.x, path.y) if across else (path.y, path.x)
        room = (WIDTH - place.radius - along[0]) if across + down > 0 else along[0] - place.radius
        travel = (along[-1] - along[0]) * (across + down)
        assert 0.8 * (room - 2) <= travel <= room
        assert np.ptp(aside) == np.ptp(path.radius) == 0
        assert (np.diff(along) * (across + down) >= 0).all()


def test_sizes_change_by_about_two_times_up_to_those_of_the_renderer():
    for place, path in _paths("growing"):
        assert path.radius[-1] >= min(1.8 * place.radius, 30.0)
    for place, path in _paths("shrinking"):
        assert path.radius[-1] <= max(place.radius / 1.8, 5.0)


def test_a_bounce_falls_first_and_touches_the_floor_twice():
    for _place, path in _paths("bouncing"):
        assert np.ptp(path.x) == np.ptp(path.radius) == 0
        near_the_floor = path.y > path.y.max() - 0.25 * np.ptp(path.y)
        touches = np.count_nonzero(np.diff(near_the_floor.astype(int)) == 1) + near_the_floor[0]
        assert touches == 2 or (touches == 3 and near_the_floor[0])  # a picture of the shape on the floor counts too
        if not near_the_floor[0]:
            assert path.y[1] >= path.y[0]


def test_a_prompt_always_names_the_motion_and_often_other_words():
    rng = np.random.default_rng(0)
    drawn = [draw_pictured_clip(rng, held_out=False) for _ in range(300)]
    assert all(each.asked.motion == each.shown.motion and len(each.path.x) == NUM_FRAMES for each in drawn)
    assert 0.3 < np.mean([each.asked != each.shown for each in drawn]) < 0.5
    assert not any(each.asked.held_out or each.shown.held_out for each in drawn)
    assert {each.asked.motion for each in drawn} == set(MOTIONS)
    assert any(draw_pictured_clip(rng, held_out=True).shown.held_out for _ in range(100))
