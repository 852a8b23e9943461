"""Which video a worker makes next, so that sizes change rarely and a prompt is encoded once for its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from .task import Task


def in_order(waiting: Sequence[Task], claimed: Collection[Task], last: Task | None) -> list[Task]:
    """Those that wait, the best first: of the size and the prompts of the last, then of its size.

    What other workers have claimed comes last, first of all their sizes, then their prompts: so workers spread over
    what there is. Among equals, the order is that of the file.

    Args:
        waiting: each key once, in the order of the file.
        claimed: what workers make now.
        last: what this worker made before.
    """
    sizes, texts = Counter(task.size for task in claimed), Counter(task.texts for task in claimed)
    first_of: dict[object, int] = {}
    for place, task in enumerate(waiting):
        first_of.setdefault(task.size, place)
        first_of.setdefault(task.texts, place)

    def rank(task: Task) -> tuple[object, ...]:
        return (
            last is None or task.size != last.size,
            sizes[task.size],
            first_of[task.size],
            last is None or task.texts != last.texts,
            texts[task.texts],
            first_of[task.texts],
        )

    return sorted(waiting, key=rank)
