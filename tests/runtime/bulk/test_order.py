"""Which video comes next: those of the last one's size and prompts first, those that others make last."""

from __future__ import annotations

from mutoscope import VideoRequest
from mutoscope.bulk.order import in_order
from mutoscope.bulk.task import Task


def task(name: str, size: int, texts: str) -> Task:
    return Task(name, 1, 1, None, VideoRequest(prompt=texts), name, (size,), texts)


A1, B1, A2, C2, B1X = (
    task("a1", 1, "a"), task("b1", 1, "b"), task("a2", 2, "a"), task("c2", 2, "c"), task("b1x", 1, "b")
)  # fmt: skip
ALL = [A1, A2, B1, C2, B1X]


def names(tasks: list[Task]) -> list[str]:
    return [each.key for each in tasks]


def test_sizes_stay_together_and_prompts_within_them():
    assert names(in_order(ALL, [], None)) == ["a1", "b1", "b1x", "a2", "c2"]


def test_a_worker_goes_on_with_the_size_and_the_prompts_that_it_had():
    assert names(in_order([A1, A2, C2, B1X], [], B1)) == ["b1x", "a1", "a2", "c2"]


def test_a_new_worker_takes_a_size_that_nobody_makes_then_prompts_that_nobody_makes():
    assert names(in_order(ALL[1:], [A1], None)) == ["c2", "a2", "b1", "b1x"]
    assert names(in_order([A1, B1], [task("z", 1, "a")], None)) == ["b1", "a1"]
