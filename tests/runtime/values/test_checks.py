from __future__ import annotations

import mutoscope.values.checks
import pytest
from mutoscope.errors import RequestError
from mutoscope.values import checks


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutoscope.values.checks, "usable_cores", lambda: 4)


def test_as_many_threads_as_usable_cores_are_taken_when_none_are_asked_for() -> None:
    assert [checks.threads("threads", asked) for asked in (None, 1, 4)] == [4, 1, 4]


@pytest.mark.parametrize("asked", [5, 64, 0, -1, 2.0, True])
def test_more_threads_than_usable_cores_are_refused_with_the_reason(asked: object) -> None:
    with pytest.raises(RequestError, match=rf"threads .* from 1 to 4; got {asked!r}\. This process may use 4 .*wait"):
        checks.threads("threads", asked)


@pytest.mark.parametrize(
    ("asked", "allowed", "nearest"),
    [(3, range(8, 9, 8), "8"), (3, range(8, 17, 8), "8, 16"), (12, range(8, 17, 8), "8, 16")],
)
def test_no_length_is_named_that_the_model_cannot_make(asked: int, allowed: range, nearest: str) -> None:
    with pytest.raises(RequestError) as refusal:
        checks.size("num_frames", asked, allowed)
    assert str(refusal.value).endswith(f"nearest: {nearest}")
