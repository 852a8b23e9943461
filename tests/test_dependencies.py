"""What pyproject.toml promises of versions was tried: `.ci/versions` installs what these constraints say."""

import json
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TRIED = ("export", "openvino", "cuda", "tensorrt-rtx")  # the extras whose lowest versions are installed
CONSTRAINTS = ROOT / ".ci" / "constraints"


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
        for name, each in requirements(*TRIED).items()
        for bound in each.specifier
        if bound.operator == ">="
    }
    assert pins("lowest.txt") == bounds
    assert set(bounds) == set(requirements(*TRIED))  # none is without one


@pytest.mark.parametrize("name", sorted(requirements(*TRIED)))
def test_the_newest_that_are_tried_are_allowed(name: str) -> None:
    assert requirements(*TRIED)[name].specifier.contains(pins("newest.txt")[name])


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.1.0"])
def test_a_transformers_that_cannot_export_wan_is_not_allowed(version: str) -> None:
    """5.0 and 5.1 leave `encoder.embed_tokens` untied in a checkpoint as Wan publishes it (transformers#43880)."""
    assert not requirements("export")["transformers"].specifier.contains(version)


@pytest.mark.parametrize("python", [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python ::" in line])
def test_every_python_that_is_declared_was_tried(python: str) -> None:
    outcomes = json.loads((CONSTRAINTS / "outcome.json").read_text("utf-8"))
    tried = [outcome for name, outcome in outcomes.items() if f"Python {python}." in name]
    assert tried and not any(outcome["failed"] for outcome in tried)


@pytest.mark.parametrize("kind", ["lowest", "newest"])
def test_the_outcome_is_of_the_versions_that_are_constrained(kind: str) -> None:
    outcomes = json.loads((CONSTRAINTS / "outcome.json").read_text("utf-8"))
    [outcome] = [outcome for name, outcome in outcomes.items() if name.startswith(kind)]
    wanted = pins(f"{kind}.txt")
    assert {name: Version(outcome["versions"][name]) for name in wanted} == wanted
    assert " passed" in outcome["tests"] and " failed" not in outcome["tests"]


def test_the_name_over_the_build_for_gpus_is_served_by_it() -> None:
    stand_in = tomllib.loads((ROOT / "distributions/onnxruntime_gpu/pyproject.toml").read_text("utf-8"))["project"]
    [build] = map(Requirement, stand_in["dependencies"])
    assert (build.name, build.extras) == ("onnxruntime-gpu", {"cuda", "cudnn"})
    assert requirements()["onnxruntime"].specifier.contains(stand_in["version"])
    assert f">={Version(stand_in['version']).public}" == str(build.specifier)
