"""Sessions whose inputs and outputs lie on a device, at addresses that stay, so that one captured graph replays a step.

Knows devices and the contract of sessions. Knows nothing of what executes the graph: that is a `Slot`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..session import Binding, Feeds, Places, Session, Shapes, Tensor, TensorSpec, check_feeds
from .device import Device, DeviceTensor, byte_size


@dataclass
class DevicePlaces:
    """`Places` on a device. Whoever uses spare memory takes it out."""

    inputs: Mapping[str, DeviceTensor] = field(default_factory=dict)
    spare: list[DeviceTensor] = field(default_factory=list)

    def output(self, device: Device, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """A spare tensor that is alike, or a new one."""
        for number, tensor in enumerate(self.spare):
            if (tensor.shape, tensor.dtype) == (shape, dtype):
                return self.spare.pop(number)
        return allocate_tensor(device, shape, dtype)


class Slot(ABC):
    """The memory of one binding: a place for each input, at addresses that stay, and the way to run over it."""

    def __init__(
        self, device: Device, inputs: tuple[TensorSpec, ...], shapes: Shapes, elsewhere: Mapping[str, DeviceTensor]
    ) -> None:
        self.shapes, self.elsewhere = dict(shapes), dict(elsewhere)
        own = [spec for spec in inputs if spec.name not in elsewhere]
        self.inputs = self.elsewhere | {
            spec.name: allocate_tensor(device, shapes[spec.name], spec.dtype) for spec in own
        }

    def serves(self, shapes: Shapes, elsewhere: Mapping[str, DeviceTensor]) -> bool:
        """Whether it is for these shapes, with these inputs where they are, and no others elsewhere."""
        return (
            self.shapes == dict(shapes)
            and self.elsewhere.keys() == elsewhere.keys()
            and all(self.elsewhere[name] is tensor for name, tensor in elsewhere.items())
        )

    @abstractmethod
    def launch(self) -> dict[str, DeviceTensor]:
        """Queues one run over the inputs as they are by then; gives the outputs, each time at the same addresses."""


class DeviceSession(Session):
    """A session over a device. Keeps the memory of the binding that was closed last, for another of the same sizes."""

    def __init__(self, device: Device, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.device = device
        self.inputs, self.outputs = inputs, outputs
        self._idle: Slot | None = None
        self._closed = False
        device.enter()

    @abstractmethod
    def open_slot(self, shapes: Shapes, places: DevicePlaces) -> Slot:
        """Memory for inputs of these shapes, which agree with `inputs`.

        Raises:
            ShapeError: the graph is not made for sizes like these.
            OutOfMemoryError: they do not fit.
        """

    def bind(self) -> DeviceBinding:
        return DeviceBinding(self, DevicePlaces())

    def bind_at(self, places: Places) -> DeviceBinding:
        inputs, spare = cast("Mapping[str, DeviceTensor]", places.inputs), cast("list[DeviceTensor]", places.spare)
        return DeviceBinding(self, DevicePlaces(inputs, list(spare)))

    def take_slot(self, shapes: Shapes, places: DevicePlaces) -> Slot:
        """The idle memory when it serves, else new memory, the idle being freed before."""
        idle, self._idle = self._idle, None
        if idle is not None and idle.serves(shapes, places.inputs):
            return idle
        if idle is not None:
            self.device.synchronize()  # it may still be running, for a reader on the device
            del idle
        return self.open_slot(shapes, places)

    def return_slot(self, slot: Slot) -> None:
        """Keeps the memory of a binding that was closed, for the next."""
        if not self._closed:
            self._idle = slot

    def cancel(self) -> None:
        """Does nothing: a GPU finishes what was queued, and that is one run, as whoever queues the next reads first."""

    def refuse_if_closed(self) -> None:
        """To be called before anything is queued.

        Raises:
            RuntimeError: the session was closed.
        """
        if self._closed:
            raise RuntimeError("this session is closed; open the graph again to run it")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.device.synchronize()  # the idle memory may still be in use
            with self.device.turn():
                self._idle = None
        finally:  # after a fault of the device too
            self._idle = None
            self.device.leave()


class DeviceBinding(Binding):
    """Queues what its session runs; nothing waits for it but `Tensor.numpy`."""

    def __init__(self, session: DeviceSession, places: DevicePlaces) -> None:
        self._session, self._places = session, places
        self._slot: Slot | None = None

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        session = self._session
        with session.device.turn():
            session.refuse_if_closed()  # in the turn: another thread may have closed it while this one waited
            fed = {name: self._readable(value) for name, value in feeds.items()}
            check_feeds(session.inputs, fed, self._slot.shapes if self._slot else None)
            shapes = {name: tuple(value.shape) for name, value in fed.items()}
            slot = self._slot or session.take_slot(shapes, self._places)
            for name, value in fed.items():
                place(value, slot.inputs[name])
            if any(value is not feeds[name] for name, value in fed.items()):
                session.device.synchronize()  # another library may reuse its memory as soon as this returns
            outputs = slot.launch()
        self._slot = slot  # sizes are settled by a run that went well
        return dict(outputs)

    def _readable(self, value: Any) -> Any:
        """Tensors and host arrays as they are, arrays of other libraries on a device as tensors."""
        if isinstance(value, np.ndarray | np.generic | DeviceTensor):
            return value
        return self._session.device.adopt(value)

    def close(self) -> None:
        if self._slot is not None:
            self._session.return_slot(self._slot)
            self._slot = None


def allocate_tensor(device: Device, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
    """Of any content."""
    memory = device.allocate(byte_size(shape, dtype))
    return DeviceTensor(device, memory, memory.address, shape, dtype)


def place(value: Any, target: DeviceTensor) -> None:
    """Queues the copy of a value to where an input lies."""
    if value is target:
        return
    if isinstance(value, DeviceTensor):
        target.device.copy(target.address, value.address, target.size)
    else:
        target.device.upload(target.address, np.asarray(value, order="C"))
