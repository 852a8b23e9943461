"""What pyproject.toml promises of versions was tried: `.ci/versions` installs what these constraints say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TRIED = ("export", "openvino", "cuda", "tensorrt-rtx")  # the extras whose lowest and newest versions are installed
SERVING = ("server", "provenance", "ray")  # the same, but only the lowest: `.ci/run` itself installs the newest
CONSTRAINTS = ROOT / ".ci" / "constraints"
OUTCOMES = json.loads((CONSTRAINTS / "outcome.json").read_text("utf-8"))


def requirements(*extras: str) -> dict[str, Requirement]:
    """By name, those of the runtime and of the extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    return {name: each for name, each in found.items() if name != "mutoscope"}


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (CONSTRAINTS / file).read_text("utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_lowest_that_are_tried_are_the_lower_bounds() -> None:
    bounds = {
        name: Version(bound.version)
        for name, each in requirements(*TRIED, *SERVING).items()
        for bound in each.specifier
        if bound.operator == ">="
    }
    assert pins("lowest.txt") == bounds
    assert set(bounds) == set(requirements(*TRIED, *SERVING))  # none is without one


@pytest.mark.parametrize("name", sorted(requirements(*TRIED)))
def test_the_newest_that_are_tried_are_allowed(name: str) -> None:
    assert requirements(*TRIED)[name].specifier.contains(pins("newest.txt")[name])


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.1.0"])
def test_a_transformers_that_cannot_export_wan_is_not_allowed(version: str) -> None:
    """5.0 and 5.1 leave `encoder.embed_tokens` untied in a checkpoint as Wan publishes it (transformers#43880)."""
    assert not requirements("export")["transformers"].specifier.contains(version)


@pytest.mark.parametrize("python", [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python ::" in line])
def test_every_python_that_is_declared_was_tried(python: str) -> None:
    assert [name for name in OUTCOMES if f"Python {python}." in name]


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_was_tried_are_the_versions_that_are_constrained_and_it_ended_well(name: str) -> None:
    kind, outcome = name.partition(",")[0], OUTCOMES[name]
    wanted = pins("lowest.txt" if kind in ("lowest", "serving") else "newest.txt")
    installed = {each: Version(version) for each, version in outcome["versions"].items() if each in wanted}
    assert installed == {each: wanted[each] for each in installed}
    tried = {"lowest": TRIED, "serving": SERVING, "newest": TRIED, "runtime": ()}[kind]
    assert set(installed) >= set(requirements(*tried))
    assert outcome["failed"] == [] and (kind == "runtime" or " passed" in outcome["tests"])


def test_the_name_over_the_build_for_gpus_is_served_by_it() -> None:
    stand_in = tomllib.loads((ROOT / "distributions/onnxruntime_gpu/pyproject.toml").read_text("utf-8"))["project"]
    [build] = map(Requirement, stand_in["dependencies"])
    assert (build.name, build.extras) == ("onnxruntime-gpu", {"cuda", "cudnn"})
    assert requirements()["onnxruntime"].specifier.contains(stand_in["version"])
    assert f">={Version(stand_in['version']).public}" == str(build.specifier)
