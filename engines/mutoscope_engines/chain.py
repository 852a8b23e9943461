"""Several sessions as one: the parts of a graph, run one after the other.

Knows the contract of sessions. Knows nothing of what executes them, or of what a part computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import numpy as np

from .errors import CancelledError
from .session import Binding, Feeds, Host, Places, Session, Shapes, Tensor, check_feeds, check_names

T = TypeVar("T")


class Chain(Session):
    """What a part gives, later parts take by its name; what none takes is an output of the chain.

    Args:
        parts: in the order in which they run. The chain closes them.
    """

    def __init__(self, parts: Sequence[Session]) -> None:
        self.parts = tuple(parts)
        made = {spec.name for part in parts for spec in part.outputs}
        taken = {spec.name for part in parts for spec in part.inputs}
        inputs = {spec.name: spec for part in parts for spec in part.inputs if spec.name not in made}
        self.inputs = tuple(inputs.values())
        self.outputs = tuple(spec for part in parts for spec in part.outputs if spec.name not in taken)
        self.running: set[ChainBinding] = set()

    def bind(self) -> ChainBinding:
        return ChainBinding(self)

    def cancel(self) -> None:
        for binding in list(self.running):
            binding.cancelled = True  # for what runs between two parts, where nothing does
        for part in self.parts:
            part.cancel()

    def close(self) -> None:
        with ExitStack() as closing:
            for part in self.parts:
                closing.callback(part.close)


class ChainBinding(Binding):
    """Runs the parts that were fed, or read what was made anew; what others gave is still there.

    Where a part wrote over what earlier ones had read, to take less memory, it is not, and all run. After a run that
    failed it begins anew: all inputs must be named again.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._bindings: list[Binding] = []  # opened in the first run, when it is known what they read and where
        self._made: dict[str, Tensor] = {}
        self._settled: Shapes = {}
        self._overwrites = self.cancelled = False

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        chain = self._chain
        check_names(chain.inputs, feeds, first=not self._settled)
        known = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray | np.generic)}
        check_feeds([spec for spec in chain.inputs if spec.name in known], known, self._settled)
        self.cancelled = False
        chain.running.add(self)
        try:
            self._run_parts(feeds)
        except BaseException:
            self.close()
            raise
        finally:
            chain.running.discard(self)
        self._settled = self._settled or {name: tuple(value.shape) for name, value in feeds.items()}
        return {spec.name: self._made[spec.name] for spec in chain.outputs}

    def _run_parts(self, feeds: Feeds) -> None:
        anew: dict[str, Host | Tensor] = dict(feeds)
        for number, part in enumerate(self._chain.parts):
            due = _for(part, anew)
            if due or self._overwrites:
                if self.cancelled:
                    raise CancelledError("the run was cancelled")
                made = self._run(number, due)
                anew |= made
                self._made |= made

    def _run(self, number: int, feeds: Feeds) -> dict[str, Tensor]:
        if number < len(self._bindings):
            return self._bindings[number].run(feeds)
        places = self._places(number)
        self._bindings.append(self._chain.parts[number].bind_at(places))
        made = self._bindings[number].run(feeds)
        self._overwrites |= any(tensor is spare for tensor in made.values() for spare in places.spare)
        return made

    def _places(self, number: int) -> Places:
        parts, finished = self._chain.parts, {spec.name for spec in self._chain.outputs}
        needed = finished | {spec.name for part in parts[number:] for spec in part.inputs}
        held = [tensor for name, tensor in self._made.items() if name in needed]
        spare: list[Tensor] = []  # each once, under however many names it was made
        for tensor in self._made.values():
            if not any(tensor is other for other in (*held, *spare)):
                spare.append(tensor)
        # What leaves the chain may be fed to its end again, after its beginning wrote over all that is spare.
        leaves = any(spec.name in finished for spec in parts[number].outputs)
        return Places(_for(parts[number], self._made), () if leaves else spare)

    def close(self) -> None:
        for binding in self._bindings:
            binding.close()
        self._bindings, self._made, self._settled, self._overwrites = [], {}, {}, False


def _for(part: Session, values: Mapping[str, T]) -> dict[str, T]:
    """What a part takes of them."""
    return {spec.name: values[spec.name] for spec in part.inputs if spec.name in values}
