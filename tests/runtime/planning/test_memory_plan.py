"""The planner: what it chooses fits, nothing that streams less would have, and what it refuses fits in no option."""

from __future__ import annotations

import math
from dataclasses import replace

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
    return MemoryOption(
        "any",
        weights,
        draw(SIZES),
        draw(SIZES),
        streamable_bytes=draw(st.integers(0, weights)),
        calls_per_step=draw(st.integers(1, 2)),
    )


STAGES = st.lists(st.lists(options(), min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda all_options: [Stage(f"stage_{index}", tuple(each)) for index, each in enumerate(all_options)]
)


def streamed_in_a_step(option: MemoryOption, limit: int) -> float:
    """The least that makes it fit, tried byte by byte; infinite where nothing does."""
    rest = option.weight_bytes + option.buffer_bytes + option.activation_bytes
    for streamed in range(option.streamable_bytes + 1):
        if rest - streamed <= limit:
            return streamed * option.calls_per_step
    return math.inf


@given(STAGES, st.integers(0, 150))
def test_the_first_that_streams_the_fewest_bytes_in_a_step_is_taken_and_no_plan_exceeds_its_limit(
    stages: list[Stage], limit: int
) -> None:
    expected = [min(stage.options, key=lambda option: streamed_in_a_step(option, limit)) for stage in stages]
    if any(streamed_in_a_step(option, limit) == math.inf for option in expected):
        with pytest.raises(DoesNotFitError):
            plan_memory(stages, limit, HOST)
        return
    plan = plan_memory(stages, limit, HOST)
    assert plan.peak_bytes <= limit
    for stage, option in zip(stages, expected, strict=True):
        chosen = plan.options[stage.name]
        assert chosen.weight_bytes + chosen.streamed_bytes == option.weight_bytes
        assert (chosen.buffer_bytes, chosen.activation_bytes) == (option.buffer_bytes, option.activation_bytes)
        assert chosen.streamed_bytes * chosen.calls_per_step == streamed_in_a_step(option, limit)


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
        ranks = [(w.weight_bytes, w.buffer_bytes, w.activation_bytes, w.calls_per_step) for w in stage.options]
        rank = [
            ranks.index((w.weight_bytes + w.streamed_bytes, w.buffer_bytes, w.activation_bytes, w.calls_per_step))
            for w in (before, after)
        ]
        assert after.bus_bytes < before.bus_bytes or (after.bus_bytes == before.bus_bytes and rank[1] <= rank[0])
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


@pytest.mark.parametrize(
    ("limit_gb", "name", "streamed_gb"),
    [
        (9.9, "whole", 0),
        (9.0, "1 branch in a call", 0),
        (8.0, "1 branch in a call, weights streamed", 0.2),  # twice in a step, which is less than 1.8 once
        (6.0, "whole, weights streamed", 3.8),  # which is less than 2.2 twice
        (5.0, "1 branch in a call, weights streamed", 3.2),  # as 4.8 would be more than may be streamed
    ],
)
def test_branches_take_turns_where_fewer_bytes_then_pass_over_the_bus(
    limit_gb: float, name: str, streamed_gb: float
) -> None:
    """Wan 2.2 5B in fp8 at 704x1280x121, about."""
    both = MemoryOption("whole", 64 * GB // 10, 2 * GB // 10, 32 * GB // 10)
    one = replace(both, name="1 branch in a call", activation_bytes=16 * GB // 10, calls_per_step=2)
    streamed = [
        replace(each, name=f"{each.name}, weights streamed", streamable_bytes=48 * GB // 10 - 1) for each in (both, one)
    ]
    plan = plan_memory([Stage("denoise", (both, one, *streamed))], int(limit_gb * GB), HOST)
    chosen = plan.options["denoise"]
    assert (chosen.name, chosen.streamed_bytes) == (name, pytest.approx(streamed_gb * GB))


def test_clips_that_lie_in_the_same_memory_count_once_for_all_stages() -> None:
    stages = [Stage(name, (MemoryOption("whole", 30, 5, 10, clip_bytes=20),)) for name in ("denoise", "decode")]
    assert plan_memory(stages, 65, HOST).peak_bytes == 65
    assert not plan_memory(stages, 99, HOST).keep_loaded
    kept = plan_memory(stages, 100, HOST)
    assert (kept.keep_loaded, kept.peak_bytes) == (True, 100)
    with pytest.raises(DoesNotFitError, match="takes at least 65 bytes, 64 are allowed"):
        plan_memory(stages, 64, HOST)


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
