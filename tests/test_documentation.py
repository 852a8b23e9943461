"""The documents lead to what exists, and their examples run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import shlex
import tomllib
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import mutoscope
import mutoscope.errors
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.cli import COMMANDS, main
from mutoscope_export.options import ExportOptions

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCUMENTS}
HISTORY = "CHANGELOG.md"  # it may name what is gone

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_NAME = re.compile(r"(?:^ *|`|&& |-m )mutoscope ([a-z][\w-]*)", re.MULTILINE)
MODULE = re.compile(r"python -m ([\w.]+)")
SOURCE = re.compile(r"`([\w./-]+\.py)`")
PLAN_VALUE = re.compile(r"`plan\.(?!json)([a-z_.]+)`")
EXTRA = re.compile(r"'(?:\.|mutoscope)\[([\w,-]+)\]'")
ERROR_ROW = re.compile(r"^\W*(\w+Error)\W+(\d+)\b", re.MULTILINE)

# Commands and Python examples that do not run here, and why. Their flags and names are checked all the same.
ON_A_GPU = "needs an NVIDIA GPU"
COVERED = "takes minutes; tests/bench/test_command.py runs `bench`"
EXPORTED = (
    "takes a minute; tests/test_nothing_calls_home.py runs an export, and tests/conftest.py one of more precisions"
)
EXPORT = "mutoscope export Wan-AI/Wan2.1-T2V-1.3B-Diffusers wan-1.3b --precision int8 bf16"  # the README's
SHIPPED = "changes a bundle; tests/runtime/building/test_shipping.py does it with one of its own"
NOT_RUN = {
    "mutoscope batch JOBS.jsonl OUT --ray 10.0.0.1:6379 --workers 8": (
        "needs a cluster; tests/runtime/bulk/test_on_ray.py starts one"
    ),
    **dict.fromkeys(
        (
            "mutoscope generate 'a cat sits on the bench' --video park.mp4 --mask bench.png --bundle BUNDLE",
            "mutoscope generate 'a wide street at night' --video padded.mp4 --mask around.png --bundle BUNDLE",
            "mutoscope generate 'the woman walks along the beach' --reference-images woman.png hat.png --bundle BUNDLE",
        ),
        "needs a video and pictures; tests/test_vace_same_as_diffusers.py gives the command some",
    ),
    "mutoscope gpu-check": ON_A_GPU,
    "mutoscope gpu-check wan-1.3b --height 480 --width 832 --num-frames 81": ON_A_GPU,
    "mutoscope bench": COVERED,
    "mutoscope bench --against all": COVERED,
    "mutoscope bench wan-1.3b --height 480 --width 832 --num-frames 81 --rounds 3 --html report.html": COVERED,
    "mutoscope bench wan-1.3b --case mlperf-text-to-video --prompt ... --negative-prompt ...": COVERED,
    "mutoscope bench wan-1.3b --checkpoint Wan2.1-T2V-1.3B-Diffusers --against diffusers": COVERED,
    "mutoscope bench --json before.json": COVERED,
    "mutoscope bench --compare before.json": COVERED,
    "mutoscope build wan-1.3b --target rtx40,rtx50 --shapes 480x832x81 --into-bundle": SHIPPED,
    "mutoscope build wan-1.3b --target rtx40 --lean wan-1.3b-rtx40": SHIPPED,
    "mutoscope build --target rtx40": "takes a minute; tests/runtime/building/test_build.py builds the built-in bundle",
    EXPORT: EXPORTED,
    "mutoscope export CHECKPOINT wan-1.3b --precision fp32 bf16": EXPORTED,
    "mutoscope export CHECKPOINT BUNDLE --precision fp32 int8 bf16": EXPORTED,
    "mutoscope export CHECKPOINT BUNDLE --precision fp32 fp8 --calibration-prompts prompts.txt": (
        "takes minutes; tests/export/quantization/test_quantize.py runs the calibration"
    ),
    "mutoscope export CHECKPOINT BUNDLE --precision fp8 --calibration-prompts prompts.txt --calibration-clips "
    "street.mp4 cat.png": (
        "takes minutes; tests/export/families/test_wan_calibration.py calibrates small checkpoints with clips"
    ),
    "mutoscope export CHECKPOINT BUNDLE --precision fp8 nvfp4 --calibration-prompts prompts.txt": (
        "takes minutes; tests/export/quantization/test_quantize.py exports a small checkpoint in both"
    ),
    "mutoscope build BUNDLE --target rtx50 --precision nvfp4": (
        "needs a bundle in NVFP4; tests/runtime/building/test_build.py builds for RTX 50"
    ),
    **dict.fromkeys(
        (
            "mutoscope export CHECKPOINT BUNDLE --transformer wan2.1_t2v_1.3B_bf16.safetensors",
            "mutoscope export CHECKPOINT BUNDLE --transformer high_noise.safetensors low_noise.safetensors",
            "mutoscope export CHECKPOINT BUNDLE --vae OTHER --text-encoder OTHER/text_encoder",
            "mutoscope export CHECKPOINT BUNDLE --lora lightning.safetensors style.safetensors:0.7",
            "mutoscope export CHECKPOINT BUNDLE --lora high.safetensors --lora-2 low.safetensors",
        ),
        "needs weights of others; tests/export/test_given_parts.py exports with files that it makes",
    ),
    **dict.fromkeys(
        (
            "mutoscope export CHECKPOINT BUNDLE --precision fp32 bf16 --lora-inputs",
            "mutoscope generate 'a fox in the snow' --bundle BUNDLE --lora style.safetensors:0.8 fox.safetensors",
            "mutoscope inspect style.safetensors BUNDLE",
        ),
        "needs LoRAs of others; tests/test_lora.py makes videos with files that it makes",
    ),
    **dict.fromkeys(
        (
            "mutoscope export Wan-AI/Wan2.2-TI2V-5B-Diffusers wan-5b --precision int8 bf16",
            "mutoscope export FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers fastwan-5b --precision int8 bf16",
            "mutoscope export Wan-AI/Wan2.1-T2V-14B-Diffusers wan-14b --precision bf16",
            "mutoscope export Wan-AI/Wan2.2-T2V-A14B-Diffusers wan-a14b --precision bf16",
            "mutoscope export Wan-AI/Wan2.2-I2V-A14B-Diffusers wan-i2v-a14b --precision bf16",
            "mutoscope export Wan-AI/Wan2.1-I2V-14B-480P-Diffusers wan-i2v-14b --precision bf16",
            "mutoscope export Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers wan-flf2v-14b --precision bf16",
            "mutoscope export Wan-AI/Wan2.1-VACE-1.3B-diffusers wan-vace-1.3b --precision int8 bf16",
            "mutoscope export Wan-AI/Wan2.1-VACE-14B-diffusers wan-vace-14b --precision bf16",
        ),
        "downloads 20 to 130 GB; tests/export exports small checkpoints of each of these kinds",
    ),
}
RED = "red.mp4"  # that the README's first command writes, and others read
PYTHON_NOT_RUN = {"torch.cuda.Stream()": ON_A_GPU}

# What is added to a command so that it ends in seconds: by its name, and by a word that it must hold.
STEPS = ["--num-inference-steps", "2"]
SMALL = ["--height", "32", "--width", "48", "--num-frames", "5"]  # a random model's default size takes 23 GB
QUICK = ["--quick", "--backend", "onnxruntime", "--precision", "fp32"]
SHORTENED = {("generate", "wan-1.3b"): STEPS, ("generate", "wan-4-steps"): SMALL, ("bench", "now.json"): QUICK}


@dataclass(frozen=True)
class Example:
    document: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.strip().splitlines()[0][:60]}"


# Its Python is cut out of a model line, which tests/export/test_second_line.py runs and compares it with.
CUT_OUT = "docs/adding-a-family.md"


def fences(language: str) -> list[Example]:
    return [
        Example(document, code)
        for document, text in TEXTS.items()
        for found, code in FENCE.findall(text)
        if found == language and (language, document) != ("python", CUT_OUT)
    ]


def console_commands() -> list[Example]:
    """The commands of Mutoscope in console examples, each once, without comments and in one notation of quotes."""
    found: dict[str, Example] = {}
    for fence in fences("console"):
        for line in fence.text.splitlines():
            for part in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
                if part.startswith("mutoscope "):
                    found.setdefault(part, Example(fence.document, part))
    return list(found.values())


def holding(pattern: re.Pattern[str], *, but: str = "") -> pytest.MarkDecorator:
    """One test for each document in which the pattern occurs, but one."""
    names = [name for name, text in TEXTS.items() if pattern.search(text) and name != but]
    return pytest.mark.parametrize("document", names)


def each(examples: list[Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", examples, ids=str)


def headings(text: str) -> list[str]:
    """Anchors that a renderer makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return ["#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@holding(LINK)
def test_links_lead_to_files_and_headings(document: str) -> None:
    broken = []
    for path, anchor in LINK.findall(TEXTS[document]):
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in headings(target.read_text("utf-8"))):
            broken.append(path + anchor)
    assert broken == []


@holding(re.compile("^## ", re.MULTILINE), but=HISTORY)
def test_no_heading_stands_twice(document: str) -> None:
    found = headings(TEXTS[document])
    assert sorted(set(found)) == sorted(found)


@holding(COMMAND_NAME, but=HISTORY)
def test_named_commands_exist(document: str) -> None:
    assert set(COMMAND_NAME.findall(TEXTS[document])) <= set(COMMANDS)


@holding(MODULE, but=HISTORY)
def test_named_modules_exist(document: str) -> None:
    missing = [name for name in MODULE.findall(TEXTS[document]) if importlib.util.find_spec(name) is None]
    assert missing == []


@holding(SOURCE, but=HISTORY)
def test_named_source_files_exist(document: str) -> None:
    folders = ("runtime", "engines", "export", "benchmarks", "tests")
    there = {f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in (ROOT / folder).rglob("*.py")}
    named = SOURCE.findall(TEXTS[document])
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in there)] == []


@holding(PLAN_VALUE, but=HISTORY)
def test_named_values_of_a_plan_exist(document: str) -> None:
    with mutoscope.Pipeline.load() as pipeline:
        plan = pipeline.plan("a red circle")
    for name in PLAN_VALUE.findall(TEXTS[document]):
        attrgetter(name)(plan)  # raises where there is none


@holding(EXTRA, but=HISTORY)
def test_named_extras_exist(document: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {name for names in EXTRA.findall(TEXTS[document]) for name in names.split(",")}
    assert named <= set(project["optional-dependencies"])


@each(fences("python"))
def test_python_examples_name_what_the_package_exports(example: Example) -> None:
    tree = list(ast.walk(ast.parse(example.text)))
    named = {
        node.attr
        for node in tree
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mutoscope"
    }
    imports = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module == "mutoscope"]
    named |= {alias.name for node in imports for alias in node.names}
    assert named <= set(mutoscope.__all__) and named


@each([example for example in fences("python") if not any(mark in example.text for mark in PYTHON_NOT_RUN)])
def test_python_examples_run(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example.text, example.document, "exec"), {"__name__": "example"})


def test_the_export_of_the_readme_is_the_one_that_these_tests_stand_on(
    wan_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its precisions are exported in tests/test_nothing_calls_home.py; here `wan_bundle` stands for what it makes."""
    asked = []

    def exported(checkpoint: str, destination: Path, options: ExportOptions, *, on_progress: object) -> Bundle:
        asked.append((checkpoint, destination, options))
        return Bundle.open(wan_bundle, verify=False)

    monkeypatch.setattr("mutoscope_export.export.export_checkpoint", exported)
    assert main(shlex.split(EXPORT)[1:]) == 0
    options = ExportOptions(precision=("int8", "bf16"))
    assert asked == [("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", Path("wan-1.3b"), options)]


@pytest.fixture(scope="module")
def red_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first command of the README makes."""
    clip = tmp_path_factory.mktemp("made") / RED
    assert main(["generate", "a red circle moving right on a black background", "-o", str(clip)]) == 0
    return clip


@each([example for example in console_commands() if example.text not in NOT_RUN])
def test_commands_run(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    _, name, *words = shlex.split(example.text)
    if name == "build":
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUTOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for bundle in {"wan-1.3b", "wan-4-steps"}.intersection(words):
        Path(bundle).symlink_to(request.getfixturevalue("wan_bundle"))
    if RED in words and words[words.index(RED) - 1] not in ("-o", "--output"):
        Path(RED).symlink_to(request.getfixturevalue("red_clip"))
    if any(word.startswith("examples/") for word in words):
        Path("examples").symlink_to(ROOT / "examples")
    more = [flag for (command, word), flags in SHORTENED.items() if command == name and word in words for flag in flags]
    assert main([name, *words, *more]) == 0


@each([example for example in console_commands() if example.text in NOT_RUN])
def test_commands_that_do_not_run_here_have_flags_that_exist(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    _, name, *words = shlex.split(example.text)
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert "--help" in known and {word for word in words if word.startswith("--")} <= known


def test_what_is_marked_as_not_run_is_still_in_the_documents() -> None:
    assert set(NOT_RUN) <= {example.text for example in console_commands()}
    assert all(any(mark in example.text for example in fences("python")) for mark in PYTHON_NOT_RUN)


@pytest.mark.parametrize(
    "table", [mutoscope.errors.__doc__, TEXTS["docs/embedding.md"]], ids=["errors.py", "embedding.md"]
)
def test_every_error_is_listed_with_its_exit_code(table: str) -> None:
    errors: list[Any] = [getattr(mutoscope.errors, name) for name in mutoscope.errors.__all__]
    assert dict(ERROR_ROW.findall(table)) == {
        error.__name__: str(error.exit_code) for error in errors if error is not mutoscope.errors.MutoscopeError
    }


def test_the_newest_version_of_the_changelog_is_this_one() -> None:
    versions = re.findall(r"^## \[(.+?)\]", TEXTS[HISTORY], re.MULTILINE)
    assert versions[0] == mutoscope.__version__
