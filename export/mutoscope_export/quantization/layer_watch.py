"""Looks at what the layers of a torch network read while it runs, and lets their results be replaced.

Knows torch's hooks and its attention function. Knows nothing of models or of quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..families.policy import QuantizedLayers

OnLinear = Callable[[str, nn.Linear, Tensor, Tensor], Tensor | None]
"""Name, layer, what it read and what it gave; a tensor replaces the latter."""
OnAttention = Callable[[str, Tensor, Tensor, Tensor], Tensor | None]
"""Name and queries, keys, values `[B, N, S, head width]` as they enter attention; a tensor replaces its result."""


@contextmanager
def watch(
    network: nn.Module, layers: QuantizedLayers, on_linear: OnLinear, on_attention: OnAttention
) -> Iterator[None]:
    """Calls the two functions for every call of these layers. An attention layer calls torch's attention once."""
    running: list[str] = []

    def enter(name: str, *_: object) -> None:
        running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    def linear(name: str, layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return on_linear(name, layer, arguments[0], output)

    with ExitStack() as stack:
        for name in layers.linears:
            layer = network.get_submodule(name)
            stack.callback(layer.register_forward_hook(partial(linear, name)).remove)
        for name in layers.attentions:
            layer = network.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        stack.enter_context(_AttentionCalls(running, on_attention))
        yield


class _AttentionCalls(TorchFunctionMode):
    """Shows `on_attention` the calls of attention inside the layer that runs; others pass."""

    def __init__(self, running: list[str], on_attention: OnAttention) -> None:
        super().__init__()
        self._running, self._on_attention = running, on_attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and self._running:
            operands = [*args, *(given[name] for name in ("query", "key", "value") if name in given)][:3]
            replaced = self._on_attention(self._running[-1], *operands)
            if replaced is not None:
                return replaced
        return func(*args, **given)
