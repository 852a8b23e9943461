"""A graph of the VAE call after call, the caches of one call handed to the next.

Knows which outputs are caches. Knows nothing of what goes in or comes out beside them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack

from mutoscope_engines.session import Feeds, Tensor

from ..planning.plan import Plan
from .loaded import LoadedGraphs

_CACHE = "cache_"


def call_by_call(
    graphs: LoadedGraphs, plan: Plan, roles: Sequence[str], feeds: Iterable[Feeds]
) -> Generator[dict[str, Tensor]]:
    """The outputs of each call, without caches; valid until the next is asked for.

    Args:
        roles: the graph for the first call, and where there are more that for all others.
        feeds: the inputs of each call, without caches; asked for when the call is due.
    """
    caches: dict[str, Tensor] = {}
    with ExitStack() as first, ExitStack() as following:
        for index, given in enumerate(feeds):
            if index == 0:
                run = first.enter_context(graphs.use(roles[0], plan))
            elif index == 1:
                run = following.enter_context(graphs.use(roles[1], plan))
            outputs = run({**given, **caches})
            if index == 1:
                first.close()  # its caches have been taken over
            # A graph may not give an output the name of an input, so "next_cache_0" becomes "cache_0".
            named = {name.removeprefix("next_"): tensor for name, tensor in outputs.items()}
            caches = {name: tensor for name, tensor in named.items() if name.startswith(_CACHE)}
            yield {name: tensor for name, tensor in outputs.items() if name.removeprefix("next_") not in caches}
