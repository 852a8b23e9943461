"""How the command line words an error of the runtime or of an engine."""

from __future__ import annotations

import pytest
from mutoscope.commands.next_steps import on_the_command_line
from mutoscope.errors import BundleError, EngineMissingError, GraphError, OutOfMemoryError, RequestError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RequestError("lower memory_limit, or num_frames=17"), "lower --memory-limit, or --num-frames 17"),
        (OutOfMemoryError("lower memory_limit, or close others"), "lower --memory-limit, or close others"),
        (BundleError("defaults.num_frames is 3"), "defaults.num_frames is 3"),  # of a file, not of the caller
        (RequestError("height must be a multiple of 16"), "--height must be a multiple of 16"),
        (RequestError("export with lora_inputs"), "export with --lora-inputs"),
        (RequestError("export with the option video_input"), "export with the option --video-input"),
        (GraphError("damaged"), "damaged; `mutoscope verify` checks a bundle, `mutoscope gpu-check` a GPU"),
        (EngineMissingError("no engine"), "no engine; `mutoscope build BUNDLE --target ...` builds engines"),
    ],
)  # fmt: skip
def test_parameters_are_flags_there_and_commands_are_the_next_step(error, told: str) -> None:
    assert on_the_command_line(error) == told
