"""Fewer calls of the network: between two of them the velocity goes on along a straight line, inside the matrices.

Knows schedules. Knows nothing of latents, graphs or devices.

A velocity that is a weighted sum of the last two computed ones leaves every step linear, so the steps between two calls
are folded into the matrices of the first. Over step numbers, this is the first order of Liu et al. 2025, "TaylorSeer"
(arXiv 2503.06923), in the lite mode of Diffusers, which predicts the network's last projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .options import ScheduleError
from .solvers import MAX_STATE_ROWS, Schedule, Step

RETAINED_SHARE = 0.3  # of the steps, from the first: the velocity turns there, as layout and motion are decided


def computed_steps(count: int, interval: int, switches: Sequence[int] = ()) -> tuple[int, ...]:
    """Which of `count` steps call the network: the first three tenths, some of those that follow, and the last.

    From call to call it is 2 steps, twice, then 3, twice, and so on, up to `interval`: the later, the straighter.

    Args:
        switches: the steps from which on another expert works. Each begins as if there were none before it: its first
            two steps and its last are computed, so that no velocity follows from those of another.
    """
    computed = set[int]()
    for start, end in itertools.pairwise([0, *switches, count]):
        own = list(range(start, min(end, max(start + 2, math.ceil(RETAINED_SHARE * count)))))
        gaps = (min(interval, 2 + index // 2) for index in itertools.count())
        while (following := own[-1] + next(gaps)) < end:
            own.append(following)
        computed |= {*own, end - 1}
    return tuple(sorted(computed))


def cached(schedule: Schedule, interval: int) -> Schedule:
    """The schedule with `computed_steps` alone; an interval of 1 gives it back as it is.

    It needs one more state row, for the velocity of the call before.

    Raises:
        ScheduleError: the schedule begins each step from new noise, or has as many state rows as there may be.
    """
    roles = [step.role for step in schedule.steps]
    switches = [index for index in range(1, len(roles)) if roles[index] != roles[index - 1]]
    computed = computed_steps(len(roles), interval, switches)
    if len(computed) == len(schedule.steps):
        return schedule
    if schedule.noise_rows > 1:
        raise ScheduleError(f"cache_interval must be 1 with {schedule.name}: each of its steps adds new noise")
    if schedule.state_rows == MAX_STATE_ROWS:
        raise ScheduleError(
            f"cache_interval must be 1 with {schedule.name} at {len(schedule.steps)} steps: this schedule already uses "
            f"all {MAX_STATE_ROWS} rows of solver state"
        )
    return replace(schedule, steps=_folded(schedule, computed), state_rows=schedule.state_rows + 1)


def _folded(schedule: Schedule, computed: Sequence[int]) -> tuple[Step, ...]:
    """One step for each of `computed`, which also takes the steps up to the next of them."""
    index_before = -1  # of the call before; the first two steps of an expert are computed
    folded = []
    for index, following in itertools.pairwise([*computed, len(schedule.steps)]):
        call = schedule.steps[index]
        *rows, velocity_before, v = np.eye(schedule.state_rows + 2)
        state = np.stack(rows)
        for distance, step in enumerate(schedule.steps[index:following]):
            velocity = v + distance / (index - index_before) * (v - velocity_before)
            state = step.solver_a @ state + np.outer(step.solver_b, velocity)
        matrix = np.vstack([state, v]).astype(np.float32)
        matrix.setflags(write=False)
        folded.append(replace(call, solver_a=matrix[:, :-1], solver_b=matrix[:, -1]))
        index_before = index
    return tuple(folded)
