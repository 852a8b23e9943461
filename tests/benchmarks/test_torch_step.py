"""The step in torch: what it says without a GPU."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import torch_step


def test_without_a_gpu_it_says_so_and_exits_with_4(monkeypatch, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["torch_step", "--checkpoint", "missing"])
    assert torch_step.main() == 4
    assert capsys.readouterr().err == "torch_step: error: this torch finds no GPU\n"
