"""The report is well-formed, says everything, and loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from mutoscope.errors import OutputError
from mutoscope_bench.report import html, write_report
from mutoscope_bench.result import Row, figures
from mutoscope_bench.table import describe

from tests.bench.results import OURS, result

SVG = "{http://www.w3.org/2000/svg}"


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def test_it_is_well_formed_and_has_the_five_plots() -> None:
    page = tree(html(result()))
    assert len(page.findall(f".//{SVG}svg")) == 5
    headings = " ".join(heading.text or "" for heading in page.iter("{http://www.w3.org/1999/xhtml}h3"))
    for wanted in ("Time of each stage", "first frame", "times faster", "Latency of each step", "Memory"):
        assert wanted in headings


def test_the_legend_names_the_stretches_that_there_are_in_their_colours() -> None:
    plain = result()
    picture = Row(case="default-clip", stage="picture_encoder", **OURS, **figures([0.25]))
    texts = ["text encoding", "denoising", "decoding", "encoding the file"]
    for shown, wanted in (
        (plain, texts),
        (result(rows=(*plain.rows, picture)), [texts[0], "picture encoding", *texts[1:]]),
    ):
        page = html(shown)
        legend = dict(re.findall(r'<span><i class="(part-\d)"></i>([^<]*)</span>', page))
        assert list(legend.values()) == wanted
        assert {f"part-{number}" for number in re.findall(r'class="part-(\d)"', page)} == legend.keys()
        assert all(f".{part}{{" in page for part in legend)


def test_the_first_frames_are_shown_the_soonest_first() -> None:
    (_, figure) = html(result()).split("Time to the first frame")
    bars = figure.partition("</figure>")[0]
    assert bars.index("mutoscope onnxruntime int8") < bars.index("diffusers fp32")
    assert "606 ms" in bars and "2.42 s" in bars


def test_it_loads_nothing_and_needs_no_script() -> None:
    text = html(result())
    assert "<script" not in text and "@import" not in text and "url(" not in text
    urls = set(re.findall(r"(?:href|src)=\"([^\"]*)\"", text))
    assert all(url.startswith("#") for url in urls)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}


def test_what_could_not_be_measured_is_said_and_escaped() -> None:
    assert "needs &lt;openvino&gt; &amp; co" in html(result())
    assert "needs <openvino> & co" in describe(result())


def test_a_noisy_machine_is_said_at_the_top_and_in_the_table() -> None:
    noise = msgspec.structs.replace(result().noise, quiet=False, reasons=("it was loud",))
    noisy = result(noise=noise)
    assert "it was loud" in html(noisy).partition("<section")[0]
    assert "it was loud" in describe(noisy)
    assert "too noisy" not in html(result())


def test_the_ratios_shown_are_of_the_one_that_ran_beside_the_peers() -> None:
    """Another of ours may look faster, from runs that no peer was beside."""
    names = {"implementation": OURS["implementation"], "precision": "fp32"}
    faster = Row(case="default-clip", stage="whole_run", **names, **figures([0.5, 0.5, 0.5]))
    both = result(rows=(faster, *result().rows))
    assert "4.00x" in describe(both)
    assert "4.00\N{MULTIPLICATION SIGN}" in html(both).partition("<section")[0]


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "none" / "a.html", result())


def test_html_parsers_close_what_they_open() -> None:
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: object) -> None:
            if tag not in ("meta",):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attributes: object) -> None:
            return

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(html(result()))
    assert open_tags == []
