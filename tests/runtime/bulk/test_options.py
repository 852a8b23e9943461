"""Limits of a batch's options."""

from __future__ import annotations

import pytest
from mutoscope import RequestError
from mutoscope.bulk.options import FILES, BatchOptions


@pytest.mark.parametrize("name", ["attempts", "lease", "workers"])
def test_a_number_below_one_is_refused_by_its_name(name: str):
    with pytest.raises(RequestError, match=name):
        BatchOptions(**{name: 0}).check()


def test_only_kinds_that_are_one_file_are_offered():
    BatchOptions().check()
    assert ".mp4" in FILES and "" not in FILES and ".png" not in FILES
