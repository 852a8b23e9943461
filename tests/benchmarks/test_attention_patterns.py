"""What a pattern lets a query see, and that it holds for the chosen steps and blocks alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import WanTransformer3DModel

from benchmarks.attention_patterns import PATTERNS, Pattern, Restricted

GRID = (3, 2, 4)
EVERY_PAIR = frozenset({(0, 0), (0, 1)})


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_query_sees_the_keys_within_the_pattern_and_no_others(pattern: Pattern) -> None:
    places = list(itertools.product(*map(range, GRID)))
    frames, around = (10 if limit is None else limit for limit in (pattern.frames, pattern.places))
    expected = [
        [abs(f - g) <= frames and abs(y - v) <= around and abs(x - u) <= around for g, v, u in places]
        for f, y, x in places
    ]
    assert pattern.mask(GRID).tolist() == expected


@pytest.fixture(scope="module")
def network() -> WanTransformer3DModel:
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2}
    return WanTransformer3DModel(
        in_channels=4, out_channels=4, text_dim=8, freq_dim=16, rope_max_seq_len=8, **shape
    ).eval()


@torch.no_grad()
def frames_that_change(
    network: WanTransformer3DModel, pattern: Pattern, pairs: frozenset[tuple[int, int]]
) -> list[bool]:
    """Of the network's output, when the last latent frame of its input changes."""
    restricted = Restricted(network, GRID)
    latents = torch.randn(1, 4, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    others = latents.clone()
    others[:, :, -1] += 1
    with restricted.to(pattern, pairs):
        one, other = (
            network(each, torch.ones(1), torch.ones(1, 3, 8), return_dict=False)[0] for each in (latents, others)
        )
    return [bool((one[:, :, frame] != other[:, :, frame]).any()) for frame in range(3)]


def test_in_its_own_frame_a_token_follows_no_other_frame(network: WanTransformer3DModel) -> None:
    assert frames_that_change(network, Pattern(frames=0), EVERY_PAIR) == [False, False, True]


def test_two_blocks_of_one_frame_reach_two_frames(network: WanTransformer3DModel) -> None:
    assert frames_that_change(network, Pattern(frames=1), EVERY_PAIR) == [True, True, True]


@pytest.mark.parametrize("pairs", [frozenset({(0, 0)}), frozenset({(1, 0), (1, 1)})])
def test_other_blocks_and_steps_keep_the_whole_attention(
    network: WanTransformer3DModel, pairs: frozenset[tuple[int, int]]
) -> None:
    assert frames_that_change(network, Pattern(frames=0), pairs) == [True, True, True]
