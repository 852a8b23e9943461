"""What is true of tensors on every device."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from mutoscope_engines.device.device import ITEM_BYTES, host_dtype
from mutoscope_engines.device.session import allocate_tensor
from mutoscope_engines.errors import GraphError

from tests.engines.host_device import HostDevice


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_type_of_a_tensor_has_one_on_the_host_of_the_same_size(dtype: str) -> None:
    assert host_dtype(dtype).name == dtype and host_dtype(dtype).itemsize == ITEM_BYTES[dtype]


def test_bfloat16_without_its_package_says_what_to_install(monkeypatch) -> None:
    tensor = allocate_tensor(HostDevice(), (2,), "bfloat16")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(GraphError, match="pip install ml_dtypes"):
        tensor.numpy()


def test_bfloat16_comes_down_where_its_package_is_installed() -> None:
    pytest.importorskip("ml_dtypes")
    device = HostDevice()
    tensor = allocate_tensor(device, (2,), "bfloat16")
    device.upload(tensor.address, np.array([0x3F80, 0xC000], np.uint16))  # 1 and -2 in bfloat16
    assert tensor.numpy().astype(np.float32).tolist() == [1, -2]
