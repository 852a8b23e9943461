"""The planner: what it chooses fits, nothing faster would have, and what it refuses fits in no way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutoscope.planning.memory_plan import DoesNotFitError, Stage, Way, least_limit_bytes, plan_memory

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

GB = 10**9
SIZES = st.integers(0, 40)


@st.composite
def ways(draw: st.DrawFn) -> Way:
    weights = draw(SIZES)
    return Way("any", weights, draw(SIZES), draw(SIZES), streamable_bytes=draw(st.integers(0, weights)))


STAGES = st.lists(st.lists(ways(), min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda all_ways: [Stage(f"stage_{index}", tuple(each)) for index, each in enumerate(all_ways)]
)


def fits(way: Way, limit: int) -> bool:
    """Whether some number of streamed bytes makes it fit, tried one by one."""
    return any(
        way.weight_bytes - streamed + way.buffer_bytes + way.activation_bytes <= limit
        for streamed in range(way.streamable_bytes + 1)
    )


@given(STAGES, st.integers(0, 150))
def test_the_first_way_that_fits_is_taken_and_no_plan_exceeds_its_limit(stages: list[Stage], limit: int) -> None:
    expected = [next((way for way in stage.ways if fits(way, limit)), None) for stage in stages]
    if None in expected:
        with pytest.raises(DoesNotFitError):
            plan_memory(stages, limit)
        return
    plan = plan_memory(stages, limit)
    assert plan.peak_bytes <= limit
    for stage, way in zip(stages, expected, strict=True):
        chosen = plan.ways[stage.name]
        assert chosen.weight_bytes + chosen.streamed_bytes == way.weight_bytes
        assert (chosen.buffer_bytes, chosen.activation_bytes) == (way.buffer_bytes, way.activation_bytes)
        assert 0 <= chosen.streamed_bytes <= way.streamable_bytes


@given(STAGES)
def test_the_least_limit_is_the_smallest_at_which_a_plan_fits(stages: list[Stage]) -> None:
    least = least_limit_bytes(stages)
    assert plan_memory(stages, least).peak_bytes <= least
    with pytest.raises(DoesNotFitError):
        plan_memory(stages, least - 1)


@given(STAGES, st.integers(0, 150), st.integers(0, 150))
def test_more_memory_never_makes_a_stage_slower(stages: list[Stage], limit: int, more: int) -> None:
    if limit < least_limit_bytes(stages):
        return
    smaller, larger = plan_memory(stages, limit), plan_memory(stages, limit + more)
    for stage in stages:
        before, after = smaller.ways[stage.name], larger.ways[stage.name]
        ranks = [(w.weight_bytes, w.buffer_bytes, w.activation_bytes) for w in stage.ways]
        rank = [
            ranks.index((w.weight_bytes + w.streamed_bytes, w.buffer_bytes, w.activation_bytes))
            for w in (before, after)
        ]
        assert rank[1] < rank[0] or (rank[1] == rank[0] and after.streamed_bytes <= before.streamed_bytes)
    # Only a stage that now runs in a faster way may leave no room to keep all loaded.
    faster = any(larger.ways[stage.name] != smaller.ways[stage.name] for stage in stages)
    assert larger.keep_loaded or not smaller.keep_loaded or faster


@given(STAGES, st.integers(0, 400))
def test_what_stays_loaded_fits_beside_the_largest_activations_and_streams_nothing(
    stages: list[Stage], limit: int
) -> None:
    if limit < least_limit_bytes(stages):
        return
    plan = plan_memory(stages, limit)
    held = sum(way.weight_bytes + way.buffer_bytes for way in plan.ways.values())
    together = held + max(way.activation_bytes for way in plan.ways.values())
    streams = any(way.streamed_bytes for way in plan.ways.values())
    assert plan.keep_loaded == (not streams and together <= limit)


def wan() -> list[Stage]:
    """Of the size of Wan 2.1 1.3B in bf16 at 480x832x81, by the recorded figures of real builds."""
    encoder = Way("whole", 11 * GB, 20_000_000, GB, streamable_bytes=8 * GB)
    both = Way("whole", 2_900_000_000, 100_000_000, 2_790_000_000, branches_per_call=2)
    one = Way("one branch at a time", 2_900_000_000, 100_000_000, 1_500_000_000)
    decoder = Way("whole", 300_000_000, 3 * GB, 3_500_000_000)
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
    plan = plan_memory(wan(), limit)
    assert plan.ways["denoiser"].name == denoiser
    assert plan.ways["text_encoder"].streamed_bytes == streamed
    assert plan.keep_loaded == resident


def test_where_activations_are_not_known_only_a_share_of_the_limit_is_taken_for_good() -> None:
    stages = [Stage("denoiser", (Way("whole", 30, 0, 0, activations_known=False),))]
    assert plan_memory(stages, 119).keep_loaded is False
    assert plan_memory(stages, 120).keep_loaded is True


def test_a_refusal_names_the_stage_and_its_smallest_way() -> None:
    with pytest.raises(DoesNotFitError, match=f"vae_decoder takes at least {68 * GB // 10} bytes") as refusal:
        plan_memory(wan(), 68 * GB // 10 - 1)
    assert (refusal.value.stage, refusal.value.way.name) == ("vae_decoder", "whole")
