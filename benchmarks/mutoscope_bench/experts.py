"""What it costs that a model has two experts and one of them in memory: the same clip with both loaded, in turn.

Knows answers of whole clips. Knows nothing of pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .measuring import Answer, Run, taking_turns

PLANNED = "planned"  # as a plan has it
LIMITED = "limited"  # with memory for one expert
KEPT = "kept"  # with both loaded from clip to clip


def experts_run(ways: Mapping[str, Run]) -> Run:
    """Makes the clip in all ways in each run, and takes turns in which comes first.

    Args:
        ways: by these three names. The stages of the run are those of `PLANNED`, with the whole run and the switch of
            the others.

    Raises:
        MeasurementError: in a run, where two ways made other frames.
    """
    answers: dict[str, Answer] = {}

    def way(name: str) -> tuple[float, str]:
        answers[name] = ways[name]()
        return answers[name]["elapsed_s"], answers[name]["sha256"]

    taken = taking_turns({name: partial(way, name) for name in ways}, "with other memory the experts made other frames")

    def run() -> Answer:
        taken()
        stages = dict(answers[PLANNED]["stages"])
        for name in (LIMITED, KEPT):
            stages |= {f"{name}_run": answers[name]["elapsed_s"], f"{name}_switch": answers[name]["stages"]["switch"]}
        return answers[PLANNED] | {"stages": stages}

    return run
