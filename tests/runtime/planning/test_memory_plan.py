"""The planner: what it chooses fits, nothing faster would have, and what it refuses fits in no option."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope.planning.memory_plan import (
    DoesNotFitError,
    HostMemoryError,
    MemoryOption,
    Stage,
    least_limit_bytes,
    plan_memory,
)

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

GB = 10**9
SIZES = st.integers(0, 40)
HOST = 100 * GB  # more than any of these keeps there


@st.composite
def options(draw: st.DrawFn) -> MemoryOption:
    weights = draw(SIZES)
    return MemoryOption("any", weights, draw(SIZES), draw(SIZES), streamable_bytes=draw(st.integers(0, weights)))


STAGES = st.lists(st.lists(options(), min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda all_options: [Stage(f"stage_{index}", tuple(each)) for index, each in enumerate(all_options)]
)


def fits(option: MemoryOption, limit: int) -> bool:
    """Whether some number of streamed bytes makes it fit, tried one by one."""
    return any(
        option.weight_bytes - streamed + option.buffer_bytes + option.activation_bytes <= limit
        for streamed in range(option.streamable_bytes + 1)
    )


@given(STAGES, st.integers(0, 150))
def test_the_first_option_that_fits_is_taken_and_no_plan_exceeds_its_limit(stages: list[Stage], limit: int) -> None:
    expected = [next((option for option in stage.options if fits(option, limit)), None) for stage in stages]
    if None in expected:
        with pytest.raises(DoesNotFitError):
            plan_memory(stages, limit, HOST)
        return
    plan = plan_memory(stages, limit, HOST)
    assert plan.peak_bytes <= limit
    for stage, option in zip(stages, expected, strict=True):
        chosen = plan.options[stage.name]
        assert chosen.weight_bytes + chosen.streamed_bytes == option.weight_bytes
        assert (chosen.buffer_bytes, chosen.activation_bytes) == (option.buffer_bytes, option.activation_bytes)
        assert 0 <= chosen.streamed_bytes <= option.streamable_bytes


@given(STAGES)
def test_the_least_limit_is_the_smallest_at_which_a_plan_fits(stages: list[Stage]) -> None:
    least = least_limit_bytes(stages)
    assert plan_memory(stages, least, HOST).peak_bytes <= least
    with pytest.raises(DoesNotFitError):
        plan_memory(stages, least - 1, HOST)


@given(STAGES, st.integers(0, 150), st.integers(0, 150))
def test_more_memory_never_makes_a_stage_slower(stages: list[Stage], limit: int, more: int) -> None:
    if limit < least_limit_bytes(stages):
        return
    smaller, larger = plan_memory(stages, limit, HOST), plan_memory(stages, limit + more, HOST)
    for stage in stages:
        before, after = smaller.options[stage.name], larger.options[stage.name]
        ranks = [(w.weight_bytes, w.buffer_bytes, w.activation_bytes) for w in stage.options]
        rank = [
            ranks.index((w.weight_bytes + w.streamed_bytes, w.buffer_bytes, w.activation_bytes))
            for w in (before, after)
        ]
        assert rank[1] < rank[0] or (rank[1] == rank[0] and after.streamed_bytes <= before.streamed_bytes)
    # Only a stage that now runs with a faster option may leave no room to keep all loaded.
    faster = any(larger.options[stage.name] != smaller.options[stage.name] for stage in stages)
    assert larger.keep_loaded or not smaller.keep_loaded or faster


@given(STAGES, st.integers(0, 400))
def test_what_stays_loaded_fits_beside_the_largest_activations_and_streams_nothing(
    stages: list[Stage], limit: int
) -> None:
    if limit < least_limit_bytes(stages):
        return
    plan = plan_memory(stages, limit, HOST)
    held = sum(option.weight_bytes + option.buffer_bytes for option in plan.options.values())
    together = held + max(option.activation_bytes for option in plan.options.values())
    streams = any(option.streamed_bytes for option in plan.options.values())
    assert plan.keep_loaded == (not streams and together <= limit)


def wan() -> list[Stage]:
    """Of the size of Wan 2.1 1.3B in bf16 at 480x832x81, by the recorded figures of real builds."""
    encoder = MemoryOption("whole", 11 * GB, 20_000_000, GB, streamable_bytes=8 * GB)
    both = MemoryOption("whole", 2_900_000_000, 100_000_000, 2_790_000_000, branches_per_call=2)
    one = MemoryOption("one branch at a time", 2_900_000_000, 100_000_000, 1_500_000_000)
    decoder = MemoryOption("whole", 300_000_000, 3 * GB, 3_500_000_000)
    return [Stage("text_encoder", (encoder,)), Stage("denoiser", (both, one)), Stage("vae_decoder", (decoder,))]


@pytest.mark.parametrize(
    ("limit", "denoiser", "streamed", "resident"),
    [
        (32 * GB, "whole", 0, True),
        (16 * GB, "whole", 0, False),
        (7 * GB, "whole", 5_020_000_000, False),
    ],
)
def test_a_real_size_in_the_memory_of_real_cards(limit: int, denoiser: str, streamed: int, resident: bool) -> None:
    plan = plan_memory(wan(), limit, HOST)
    assert plan.options["denoiser"].name == denoiser
    assert plan.options["text_encoder"].streamed_bytes == streamed
    assert plan.keep_loaded == resident


def test_where_activations_are_not_known_only_a_share_of_the_limit_is_taken_for_good() -> None:
    stages = [Stage("denoiser", (MemoryOption("whole", 30, 0, 0, activations_known=False),))]
    assert plan_memory(stages, 119, HOST).keep_loaded is False
    assert plan_memory(stages, 120, HOST).keep_loaded is True


def test_a_refusal_names_the_stage_and_its_smallest_option() -> None:
    with pytest.raises(DoesNotFitError, match=f"vae_decoder takes at least {68 * GB // 10} bytes") as refusal:
        plan_memory(wan(), 68 * GB // 10 - 1, HOST)
    assert (refusal.value.stage, refusal.value.option.name) == ("vae_decoder", "whole")


def test_what_is_kept_in_host_memory_must_fit_there_and_memory_of_the_device_is_no_substitute() -> None:
    whole, tiles = MemoryOption("whole", 0, 90, 0), MemoryOption("in 2 tiles", 0, 30, 0, host_bytes=50)
    stages = [Stage("vae_decoder", (whole, tiles))]
    assert plan_memory(stages, 90, 0).options["vae_decoder"] is not tiles
    assert plan_memory(stages, 89, 50).options["vae_decoder"].name == "in 2 tiles"
    with pytest.raises(HostMemoryError, match="vae_decoder keeps at least 50 bytes in host memory of 49"):
        plan_memory(stages, 89, 49)
