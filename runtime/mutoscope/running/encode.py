"""What the video follows into inputs of the denoiser: the graphs of the conditionings, each once.

Knows conditions and graphs. Knows nothing of what any of them means.
"""

from __future__ import annotations

from mutoscope_engines.session import Feeds, Host

from ..planning.plan import Job
from .loaded import LoadedGraphs


def encode(graphs: LoadedGraphs, job: Job) -> dict[str, Host]:
    """The inputs of the denoiser that stay the same for the video, by name; on the host."""

    def run(role: str, feeds: Feeds) -> dict[str, Host]:
        with graphs.use(role, job.plan) as graph:
            return {name: tensor.numpy() for name, tensor in graph(feeds).items()}

    encoded: dict[str, Host] = {}
    for condition, settled in job.conditions:
        encoded |= condition.encode(settled, run)
    return encoded
