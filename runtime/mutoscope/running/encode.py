"""What the video follows into inputs of the denoiser: the graphs of the conditionings.

Knows conditions and graphs. Knows nothing of what any of them means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import numpy as np
from mutoscope_engines.session import Feeds, Host

from ..conditions.base import Condition, Settled, UseGraphs
from ..planning.plan import Job
from .calls import call_by_call
from .loaded import LoadedGraphs


class EncodedConditions:
    """What a caller keeps of one video for the next, so that the same prompt is not encoded again for another seed.

    Holds the last that each conditioning was encoded into, and gives it again where the next video has exactly the
    same. Belongs to the caller, who decides how long it lives, and to one thread at a time; a pipeline keeps nothing.
    """

    def __init__(self) -> None:
        self._last: dict[Condition, tuple[Mapping[str, Host], dict[str, Host]]] = {}

    def encode(self, condition: Condition, settled: Settled, run: UseGraphs) -> dict[str, Host]:
        """What `Condition.encode` gives, from the last time where nothing differs."""
        if condition in self._last:
            feeds, encoded = self._last[condition]
            if _same(feeds, settled.feeds):
                return encoded
        encoded = condition.encode(settled, run)
        self._last[condition] = settled.feeds, encoded
        return encoded


def encode(graphs: LoadedGraphs, job: Job, kept: EncodedConditions | None = None) -> dict[str, Host]:
    """The inputs of the denoiser that stay the same for the video, by name; on the host.

    Args:
        kept: what was encoded before, and takes what is encoded now.
    """
    kept = kept or EncodedConditions()

    def run(roles: Sequence[str], feeds: Iterable[Feeds]) -> list[dict[str, Host]]:
        with closing(call_by_call(graphs, job.plan, roles, feeds)) as calls:
            return [{name: tensor.numpy() for name, tensor in outputs.items()} for outputs in calls]

    encoded: dict[str, Host] = {}
    for condition, settled in job.conditions:
        encoded |= kept.encode(condition, settled, run)
    return encoded


def _same(feeds: Mapping[str, Host], others: Mapping[str, Host]) -> bool:
    return feeds.keys() == others.keys() and all(np.array_equal(feeds[name], others[name]) for name in feeds)
