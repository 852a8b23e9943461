"""The regression gate, both ways."""

from __future__ import annotations

import msgspec
import pytest
from mutoscope.errors import RequestError
from mutoscope_bench.comparison import compare, refuse_other_machine, refuse_other_settings
from mutoscope_bench.result import Result, Row, figures

from tests.bench.results import MACHINE, OURS, result


def test_nothing_is_worse_when_nothing_changed() -> None:
    assert not any(change.worse for change in compare(result(), result()))


def test_what_got_slower_beyond_the_noise_comes_first_and_what_did_not_is_not_worse() -> None:
    changes = compare(result(), result(factor=1.5))
    assert {change.implementation for change in changes if change.worse} == {"mutoscope onnxruntime"}
    assert changes[0].worse and changes[0].ratio == pytest.approx(1.5, rel=1e-3)


def test_one_measurement_alone_says_little() -> None:
    def once(factor: float) -> Result:
        rows = [Row(case="default-clip", stage="load_cold", **OURS, **figures([factor]))]
        return result(rows=tuple(rows))

    assert not any(change.worse for change in compare(once(1.0), once(1.3)))
    assert any(change.worse for change in compare(once(1.0), once(1.7)))


def test_what_a_peer_takes_is_not_our_regression() -> None:
    old, new = result(), result()
    rows = [
        msgspec.structs.replace(row, **figures([9.0, 9.0, 9.0]))
        for row in new.rows
        if row.implementation == "diffusers"
    ]
    assert not any(change.worse for change in compare(old, result(rows=(*rows, *result().rows))))


def test_faster_is_not_worse() -> None:
    assert not any(change.worse for change in compare(result(factor=1.5), result()))


def test_more_memory_is_worse() -> None:
    changes = compare(result(), result(peak_rss_bytes=3 * 10**8))
    assert {change.what for change in changes if change.worse} == {"memory"}


@pytest.mark.parametrize("changed", [{"cpu": "another"}, {"cores": 4}, {"memory_bytes": 1}, {"gpus": ["a GPU"]}])
def test_another_machine_is_refused_and_named(changed: dict[str, object]) -> None:
    (name,) = changed
    with pytest.raises(RequestError, match=rf"another machine.*{name}"):
        refuse_other_machine(MACHINE | changed, result(), "old.json")


def test_other_versions_of_libraries_are_the_same_machine() -> None:
    refuse_other_machine(MACHINE | {"packages": {"numpy": "3"}}, result(), "old.json")


@pytest.mark.parametrize("changed", [{"threads": 1}, {"quick": True}, {"request": {"num_frames": 5}}])
def test_other_work_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(changed))):
        refuse_other_settings(result().settings | changed, "SingleStream", result(), "old.json")


def test_results_without_a_common_row_cannot_be_compared() -> None:
    with pytest.raises(RequestError, match="no row in common"):
        compare(result(rows=()), result())
