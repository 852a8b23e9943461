"""`CudaDevice` used by several threads at once, over the stub driver."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from mutoscope_engines.device.cuda import CudaDevice

from tests.engines.stub_driver.driver import up

pytestmark = pytest.mark.gpu


def test_a_download_waits_for_no_thread_that_has_its_turn(device: CudaDevice) -> None:
    tensor = up(device, 6)
    values, taken, done = np.zeros(1, np.float32), threading.Event(), threading.Event()
    synchronize = device.synchronize

    def synchronized() -> None:
        synchronize()
        holder.start()
        taken.wait(10)

    def hold() -> None:
        with device.turn():
            taken.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    device.synchronize = synchronized  # type: ignore[method-assign]
    try:
        device.download(tensor.address, values)
        assert not done.is_set() and values.tolist() == [6]
    finally:
        done.set()
        holder.join()
        del device.synchronize  # type: ignore[method-assign]


def test_threads_that_upload_and_download_while_another_captures_get_their_own_values(device: CudaDevice) -> None:
    wrong: list[object] = []
    start = threading.Barrier(4)

    def carry(number: int) -> None:
        start.wait()
        for round_number in range(50):
            with device.turn():
                tensor = up(device, number, round_number)
            if tensor.numpy().tolist() != [number, round_number]:
                wrong.append(number)

    def capture() -> None:
        start.wait()
        source, target = up(device, 7), up(device, 0)
        for _ in range(50):
            replay = device.capture(lambda: device.copy(target.address, source.address, 4))
            with device.turn():
                replay()
        wrong.extend(target.numpy() - 7 > 0)

    threads = [threading.Thread(target=carry, args=[number]) for number in range(3)]
    threads.append(threading.Thread(target=capture))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)
