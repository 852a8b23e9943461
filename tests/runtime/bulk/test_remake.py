"""A receipt against its video: unchanged, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mutoscope import BundleError, RequestError
from mutoscope.bulk.receipts import write_lists
from mutoscope.bulk.remake import (
    ReceiptError,
    check_file,
    difference_db,
    is_receipt,
    options_of,
    read_receipts,
    remake,
)
from mutoscope.bulk.worker import Worker, open_store
from mutoscope.making import Observer
from mutoscope_engines.system.machine import usable_cores


@pytest.fixture
def out(make_batch, pipeline) -> Path:
    batch = make_batch({"prompt": "a circle", "seed": 1, "repeat": 2})
    Worker(batch, pipeline).run()
    with open_store(batch) as store:
        write_lists(batch, store)
    return batch.out


def test_a_receipt_a_list_and_a_folder_are_read_alike(out: Path):
    single = next((out / "receipts").iterdir())
    assert len(read_receipts(out)) == len(read_receipts(out / "receipts.jsonl")) == 2
    (one,) = read_receipts(single)
    for receipt in (one, *read_receipts(out)):
        check_file(receipt)
    assert all(map(is_receipt, (out, out / "receipts.jsonl", single)))
    assert not is_receipt(out / "videos") and not is_receipt(one.file)


@pytest.mark.parametrize("text", ["{", "[1]", '{"file": "x"}'])
def test_what_is_no_receipt_is_refused(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RequestError, match="is not a receipt"):
        read_receipts(tmp_path / "x.json")
    with pytest.raises(RequestError, match="cannot be read"):
        read_receipts(tmp_path / "none.json")


def test_a_changed_or_missing_video_is_told(out: Path):
    receipt = read_receipts(out)[0]
    receipt.file.write_bytes(receipt.file.read_bytes() + b"x")
    with pytest.raises(ReceiptError, match="was changed after it was made"):
        check_file(receipt)
    receipt.file.unlink()
    with pytest.raises(ReceiptError, match="is missing"):
        check_file(receipt)


def test_a_remake_has_the_same_content(out: Path, pipeline, tmp_path: Path):
    for number, receipt in enumerate(read_receipts(out)):
        file = remake(receipt, pipeline, tmp_path / f"{number}.npy", Observer())
        assert file.content_sha256 == receipt.facts["content_sha256"]


def test_a_remake_from_another_bundle_is_refused(out: Path, pipeline, tmp_path: Path):
    receipt = read_receipts(out)[0]
    receipt.facts["plan"]["bundle_sha256"] = "0" * 64
    with pytest.raises(BundleError, match="name the folder of that bundle"):
        remake(receipt, pipeline, tmp_path / "again.npy", Observer())


def test_the_options_of_a_receipt_give_way_to_this_machine_and_to_what_is_given(out: Path):
    receipt = read_receipts(out)[0]
    receipt.facts["runtime"] |= {"backend": "onnxruntime", "threads": 1000, "precision": "fp32"}
    assert options_of(receipt, {}).threads == usable_cores()
    assert options_of(receipt, {}).precision == "fp32"
    other = options_of(receipt, {"backend": "openvino", "threads": 1})
    assert (other.backend, other.precision, other.memory_limit, other.threads) == ("openvino", None, None, 1)


def test_a_difference_is_the_psnr_of_all_pixels(tmp_path: Path):
    black = np.zeros((2, 4, 4, 3), np.uint8)
    off = black.copy()
    off[0] = 51  # a fifth of the range in half of the pixels: 10 log10(2 * 25)
    for name, frames in {"a": black, "b": off, "short": black[:1], "small": black[:, :2]}.items():
        np.save(tmp_path / f"{name}.npy", frames)
    assert difference_db(tmp_path / "a.npy", tmp_path / "a.npy") == float("inf")
    assert difference_db(tmp_path / "a.npy", tmp_path / "b.npy") == pytest.approx(10 * np.log10(50))
    for name in ("short", "small"):
        with pytest.raises(RequestError, match="differ in size or in their number"):
            difference_db(tmp_path / f"{name}.npy", tmp_path / "a.npy")


def test_a_list_is_written_again_when_a_receipt_came_meanwhile(make_batch, pipeline, monkeypatch):
    batch = make_batch({"prompt": "a circle", "seed": 1, "repeat": 2})
    Worker(batch, pipeline).run()
    with open_store(batch) as store:
        late = batch.out / "receipts" / f"{batch.tasks[1].key}.json"
        content, replace = late.read_bytes(), store.replace
        late.unlink()

        def then_one_comes(name: str, text: bytes) -> None:
            replace(name, text)
            late.write_bytes(content)

        monkeypatch.setattr(store, "replace", then_one_comes)
        write_lists(batch, store)
    lines = (batch.out / "receipts.jsonl").read_text().splitlines()
    assert [json.loads(line)["repeat"] for line in lines] == [1, 2]
