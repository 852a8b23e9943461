"""What is said of a name that does not exist."""

from __future__ import annotations

import pytest
from mutoscope_engines.names import no_such

FLAGS = ("--overwrite", "--vae", "--lora", "--lora-2", "--precision")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("--over", "did you mean --overwrite?"),  # the beginning of one, though another is spelled more like it
        ("--precison", "did you mean --precision?"),
        ("--lor", "did you mean --lora?"),  # the beginning of two
        ("--height", "'--height'. There are: --overwrite"),
        ("", "''. There are: --overwrite"),
    ],
)
def test_the_nearest_name_is_the_one_that_begins_so_or_is_spelled_so(name: str, said: str) -> None:
    assert said in no_such("flag", name, FLAGS)
