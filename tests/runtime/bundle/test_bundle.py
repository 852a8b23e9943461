"""A bundle is read back as it was written, and refused when anything about it is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope.bundle.contract import ROLES
from mutoscope.bundle.manifest import MANIFEST
from mutoscope.errors import BundleError
from mutoscope_engines.onnx_file import read_onnx_file

GRAPH = "denoiser/model.onnx"
NEEDED = [name for name, role in ROLES.items() if role.needed or name == "text_encoder"]


def edit_manifest(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    edit(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))


def refusal(root: Path) -> str:
    """The message with which the bundle is refused; it must end in a next step."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert any(step in message for step in ("xport", "Copy", "refused")), message
    return message


def test_a_bundle_is_read_back_as_it_was_written(make_bundle) -> None:
    written = make_bundle()
    read = Bundle.open(written.root)
    assert read == written
    assert read.sha256 == hashlib.sha256((read.root / MANIFEST).read_bytes()).hexdigest()
    assert [each.name for each in read_onnx_file(read.path(GRAPH)).outputs] == ["next_state", "velocity_peak"]


def test_every_file_is_listed_with_its_size_and_hash(make_bundle) -> None:
    bundle = make_bundle()
    on_disk = {path.relative_to(bundle.root).as_posix(): path for path in bundle.root.rglob("*") if path.is_file()}
    del on_disk[MANIFEST]
    assert set(bundle.manifest.files) == set(on_disk)
    for name, record in bundle.manifest.files.items():
        content = on_disk[name].read_bytes()
        assert (record.size, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_verify_names_every_file(make_bundle) -> None:
    bundle = make_bundle()
    assert sorted(bundle.verify()) == sorted(bundle.manifest.files)


def test_a_path_that_is_not_utf8_is_refused_for_what_it_is_and_can_be_looked_at(make_bundle, tmp_path) -> None:
    moved = make_bundle().root.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(BundleError, match=r"caf\\udce9' is not UTF-8, .* Rename the folder"):
        Bundle.open(moved)
    assert list(Bundle.open(moved, verify=False).verify())


def with_two_denoisers(bundle: Bundle) -> Bundle:
    """A second denoiser takes 300 bytes from the 1000 of the first, and has 50 of its own."""
    (bundle.root / "denoiser" / "model-int8.onnx").write_bytes(b"int8")
    for name, size in (("model.onnx.data", 1000), ("model-int8.onnx.data", 50)):
        (bundle.root / "denoiser" / name).write_bytes(bytes(size))
    encoder, denoiser, *others = bundle.manifest.graphs
    first, second = "denoiser/model.onnx.data", "denoiser/model-int8.onnx.data"
    changed = (
        {"weights": (first,), "weight_bytes": 1000},
        {"precision": "int8", "file": "denoiser/model-int8.onnx", "weights": (first, second), "weight_bytes": 350},
    )
    denoisers = [msgspec.structs.replace(denoiser, **change) for change in changed]
    return write_manifest(bundle.root, msgspec.structs.replace(bundle.manifest, graphs=(encoder, *denoisers, *others)))


def test_the_size_of_a_graph_counts_of_shared_files_what_it_needs(make_bundle) -> None:
    bundle = Bundle.open(with_two_denoisers(make_bundle()).root)
    sizes = {name: bundle.size_of(bundle.manifest.graphs_of("denoiser", name)[0]) for name in ("fp32", "int8")}
    assert sizes == {"fp32": 1000 + bundle.path(GRAPH).stat().st_size, "int8": 350 + len("int8")}


def test_the_content_of_a_graph_is_its_own_file_and_those_it_takes_weights_from(make_bundle) -> None:
    bundle = with_two_denoisers(make_bundle())
    files = {name: content_of(bundle, name) for name in ("fp32", "int8")}
    assert list(files["fp32"]) == ["model.onnx", "model.onnx.data"]
    assert list(files["int8"]) == ["model-int8.onnx", "model.onnx.data", "model-int8.onnx.data"]
    (bundle.root / "denoiser" / "model-int8.onnx.data").write_bytes(b"others")
    bundle = write_manifest(bundle.root, bundle.manifest)
    assert content_of(bundle, "fp32") == files["fp32"]
    changed = {name for name, digest in content_of(bundle, "int8").items() if digest != files["int8"][name]}
    assert changed == {"model-int8.onnx.data"}


def content_of(bundle: Bundle, precision: str) -> dict[str, str]:
    return bundle.content_of(bundle.manifest.graphs_of("denoiser", precision)[0])


@pytest.mark.parametrize("name", ["text_encoder/weights", "weights"])
def test_weights_that_do_not_lie_beside_their_graph_are_refused(make_bundle, name: str) -> None:
    bundle = with_two_denoisers(make_bundle())
    (bundle.root / name).write_bytes(b"elsewhere")
    write_manifest(bundle.root, bundle.manifest)
    edit_manifest(bundle.root, lambda manifest: manifest["graphs"][1].update(weights=[name]))
    assert f"{name} in {bundle.root} has weights of denoiser/model.onnx and must be in the" in refusal(bundle.root)


def test_what_nobody_listed_does_no_harm(make_bundle) -> None:
    root = make_bundle().root
    (root / "notes.txt").write_text("mine")
    (root / "link").symlink_to("/etc/passwd")
    bundle = Bundle.open(root)
    with pytest.raises(BundleError, match=r"'notes\.txt' is not a file of the bundle"):
        bundle.path("notes.txt")


@pytest.mark.parametrize("name", ["model.onnx.data", ".hidden", "sub/weights"])
def test_a_file_beside_a_graph_that_nobody_listed_is_refused(make_bundle, name: str) -> None:
    path = make_bundle().root / "denoiser" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    assert f"denoiser/{name} in" in refusal(path.parents[len(Path(name).parts)])


def test_a_link_beside_a_graph_is_refused_though_the_bundle_holds_what_it_leads_to(make_bundle) -> None:
    root = make_bundle().root
    (root / "denoiser" / "sub").symlink_to(root / "text_encoder")
    assert "denoiser/sub in" in refusal(root)


def test_weights_that_were_struck_from_the_manifest_are_refused(make_bundle) -> None:
    bundle = make_bundle()
    (bundle.root / "denoiser" / "model.onnx.data").write_bytes(bytes(10))
    write_manifest(bundle.root, bundle.manifest)
    Bundle.open(bundle.root)
    edit_manifest(bundle.root, lambda manifest: manifest["files"].pop("denoiser/model.onnx.data"))
    assert "denoiser/model.onnx.data in" in refusal(bundle.root)


def test_a_graph_in_the_top_folder_is_refused(make_bundle) -> None:
    bundle = make_bundle()
    (bundle.root / GRAPH).rename(bundle.root / "model.onnx")
    moved = [
        msgspec.structs.replace(graph, file="model.onnx") if graph.role == "denoiser" else graph
        for graph in bundle.manifest.graphs
    ]
    write_manifest(bundle.root, msgspec.structs.replace(bundle.manifest, graphs=tuple(moved)))
    assert "is a graph and must be in a subfolder" in refusal(bundle.root)


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(make_bundle) -> None:
    root = make_bundle().root
    (root / MANIFEST).rename(root.parent / "elsewhere")
    (root / MANIFEST).symlink_to(root.parent / "elsewhere")
    assert refusal(root).startswith(
        f"{MANIFEST} in {root} is a link that leaves the bundle; refused. Where you trust it"
    )


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (
            lambda m: m["defaults"].update(height=33),
            "the default height is 33; its networks take 16 to 1024 in steps of 16",
        ),
        (
            lambda m: m["defaults"].update(width=1040),
            "the default width is 1040; its networks take 16 to 1024 in steps of 16",
        ),
        (lambda m: m["preview"]["weights"].pop(), "preview has 3 rows for 4 channels"),
        (
            lambda m: m["graphs"].append(m["graphs"][0]),
            "the graphs of the text_encoder in fp32 are numbered 0, 0; one is 0",
        ),
        *[(lambda m, i=i: m["graphs"].pop(i), f"no graph of the {role}") for i, role in enumerate(NEEDED)],
        (
            lambda m: m["graphs"].extend(
                [m["graphs"][0] | {"precision": "fp16"}, m["graphs"][1] | {"precision": "fp8"}]
            ),
            "no 'text_encoder' graph in fp8 or bf16; it has: fp32, fp16",
        ),
        (
            lambda m: m["graphs"][1].update(inputs=[{"name": "x", "dtype": "float32", "shape": ["F", "2*depth"]}]),
            "shapes of its graphs and draws name depth, which nothing gives a size",
        ),
        *[
            (
                lambda m, size=size: m["graphs"][1].update(inputs=[{"name": "x", "dtype": "float32", "shape": [size]}]),
                f"shapes of its graphs and draws name {unknown}, which nothing gives a size",
            )
            for size, unknown in (("F*depth//2", "depth"), ("h//0", "h//0"), ("h+1", "h+1"), ("2**h", "2**h"))
        ],
        *[
            (
                lambda m, numbers=numbers: m["graphs"].extend(
                    m["graphs"][1] | {"precision": "int8", "part": number} for number in numbers
                ),
                f"the graphs of the denoiser in int8 are numbered {', '.join(map(str, sorted(numbers)))}; one",
            )
            for numbers in ((1,), (0, 1), (1, 3), (1, 1))
        ],
        *[
            (
                lambda m, given=given, part=part: m["graphs"].extend(
                    m["graphs"][1] | {"precision": "int8", "part": number, "inputs": inputs, "outputs": outputs}
                    for number, inputs, outputs in (
                        (part, [], [{"name": "x", "dtype": "float32", "shape": [2, "h"]}]),
                        (3 - part, [given], []),
                    )
                ),
                f"denoiser.{3 - part} in int8 takes x otherwise than a part before it gives it",
            )
            for part, given in (
                (2, {"name": "x", "dtype": "float32", "shape": [2, "h"]}),
                (1, {"name": "x", "dtype": "float16", "shape": [2, "h"]}),
                (1, {"name": "x", "dtype": "float32", "shape": [3, "h"]}),
            )
        ],
        (lambda m: m["graphs"][1].update(part=-1), "`$.graphs[1].part`"),
        (lambda m: m["geometry"].update(vae_scale_factor_spatial=0), "`$.geometry.vae_scale_factor_spatial`"),
        (lambda m: m["geometry"].update(max_patches=2**40), "`$.geometry.max_patches`"),
        (lambda m: m["geometry"].update(patch_size=[1, 2, -2]), "`$.geometry.patch_size"),
        (lambda m: m["geometry"].pop("vae_decoder_halo"), "required field `vae_decoder_halo`"),
        (lambda m: m["geometry"].update(vae_decoder_halo=-1), "`$.geometry.vae_decoder_halo`"),
        (lambda m: m["conditionings"][0].update(pad_token_id=-1), "`$.conditionings[0].pad_token_id`"),
        (lambda m: m["defaults"].update(fps=0), "`$.defaults.fps`"),
        (lambda m: m["defaults"].update(fps="1/2"), "fps is '1/2', not a rate from 1 to 240 - at `$.defaults`"),
        (lambda m: m["defaults"].update(num_inference_steps=1001), "`$.defaults.num_inference_steps`"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_before_anything_runs(make_bundle, edit, complaint: str) -> None:
    root = make_bundle().root
    edit_manifest(root, edit)
    assert complaint in refusal(root)


def test_a_role_is_taken_in_the_denoisers_precision_or_its_base_and_the_denoiser_only_as_asked(make_bundle) -> None:
    manifest = make_bundle().manifest
    encoder, denoiser = manifest.graphs_of("text_encoder", "fp32")[0], manifest.graphs_of("denoiser", "fp32")[0]
    others = [
        msgspec.structs.replace(graph, precision=precision, file=f"{graph.role}-{precision}/model.onnx")
        for graph, precision in ((denoiser, "int8"), (denoiser, "fp8"), (encoder, "bf16"))
    ]
    manifest = msgspec.structs.replace(manifest, graphs=(*manifest.graphs, *others))
    taken = {name: manifest.graphs_of("text_encoder", name)[0].precision for name in ("fp32", "int8", "bf16", "fp8")}
    assert taken == {"fp32": "fp32", "int8": "fp32", "bf16": "bf16", "fp8": "bf16"}
    assert manifest.graphs_of("denoiser", "int8")[0] == others[0]
    with pytest.raises(
        BundleError, match=r"no 'denoiser' graph in bf16; it has: fp32, int8, fp8\. .*Export it in bf16"
    ):
        manifest.graphs_of("denoiser", "bf16")
    with pytest.raises(BundleError, match="no 'vae_decoder_next' graph in fp8 or bf16; it has: fp32"):
        manifest.graphs_of("vae_decoder_next", "fp8")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no bundle at" in refusal(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_refused(make_bundle) -> None:
    root = make_bundle().root
    (root / MANIFEST).unlink()
    assert "has no manifest.json" in refusal(root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b"[" * 100_000,
        lambda content: b"\xff" + content,
        lambda content: content.replace(b"Apache", b"Apa\xffhe"),
    ],
    ids=["half", "empty", "a list", "deep", "not text", "bad text"],
)
def test_a_damaged_manifest_is_refused(make_bundle, damage: Callable[[bytes], bytes]) -> None:
    path = make_bundle().root / MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    assert MANIFEST in refusal(path.parent)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda m: m.update(format_version=1), "format version 1, this Mutoscope reads 4"),
        (lambda m: m.update(format_version="2"), "format version 2"),
        (lambda m: m.pop("format_version"), "format_version"),
        (lambda m: m.update(engine="x"), "unknown field `engine`"),
        (lambda m: m["geometry"].update(depth=1), "unknown field `depth` - at `$.geometry`"),
        (lambda m: m["geometry"].update(latent_channels="4"), "got `str` - at `$.geometry.latent_channels`"),
        (lambda m: m["defaults"].pop("fps"), "missing required field `fps`"),
        (lambda m: m["files"].pop(GRAPH), f"does not list {GRAPH}"),
        (lambda m: m["files"].pop("tokenizer.json"), "does not list tokenizer.json"),
        (lambda m: m["graphs"][1].update(weights=["denoiser/gone"]), "does not list denoiser/gone"),
        (lambda m: m["graphs"][1].update(weight_bytes=-1), "`$.graphs[1].weight_bytes`"),
        (lambda m: m["files"][GRAPH].update(size=-1), "Expected `int` >= 0 - at `$.files[...].size`"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(make_bundle, edit, complaint: str) -> None:
    root = make_bundle().root
    edit_manifest(root, edit)
    assert complaint in refusal(root)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), rf"{GRAPH} in .* has \d+ bytes, the manifest says \d+"),
        (lambda path: path.write_bytes(b"T" + path.read_bytes()[1:]), f"{GRAPH} in .* does not have the hash"),
        (lambda path: path.unlink(), f"{GRAPH} is missing"),
        (lambda path: (path.unlink(), path.mkdir()), f"{GRAPH} is missing"),
        (lambda path: (path.unlink(), os.mkfifo(path)), f"{GRAPH} is missing"),
        (lambda path: (path.unlink(), path.symlink_to(path)), f"{GRAPH} is missing"),
    ],
    ids=["truncated", "changed byte", "missing", "folder", "pipe", "loop of links"],
)
def test_a_damaged_file_is_refused_by_its_name(make_bundle, damage, complaint: str) -> None:
    root = make_bundle().root
    damage(root / GRAPH)
    with pytest.raises(BundleError, match=complaint):
        Bundle.open(root)
    refusal(root)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "denoiser/../../secret", r"..\secret", "C:secret", "", ".", "a\0b", "x" * 5000]
)
def test_a_path_that_leaves_the_bundle_is_refused(make_bundle, name: str) -> None:
    root = make_bundle().root
    secret = root.parent / "secret"
    secret.write_bytes(b"secret")
    record = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit_manifest(root, lambda manifest: manifest["files"].update({name: record}))
    with pytest.raises(BundleError, match=r"refused|cannot be read"):
        Bundle.open(root)


@pytest.mark.parametrize("link", [GRAPH, "denoiser"])
def test_a_link_out_of_the_folder_is_refused_even_with_the_right_content(make_bundle, link: str) -> None:
    root = make_bundle().root
    (root / link).rename(root.parent / "elsewhere")
    (root / link).symlink_to(root.parent / "elsewhere")
    assert f"{GRAPH} in {root} is a link that leaves the bundle; refused" in refusal(root)


def test_a_bundle_in_a_hub_cache_is_refused_with_a_command_that_makes_it_one(make_bundle, tmp_path: Path) -> None:
    """`snapshot_download` gives a folder of links into `blobs`."""
    made = make_bundle()
    cache = tmp_path / "models--someone--a model"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    blobs.mkdir(parents=True)
    for path in [path for path in made.root.rglob("*") if path.is_file()]:
        blob, link = blobs / hashlib.sha256(path.read_bytes()).hexdigest(), snapshot / path.relative_to(made.root)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    command = refusal(snapshot).partition("its links lead to: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert Bundle.open(tmp_path / "BUNDLE").sha256 == made.sha256


def test_a_bundle_may_itself_be_reached_by_a_link(make_bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make_bundle().root)
    assert Bundle.open(tmp_path / "link").path(GRAPH).is_file()


def test_a_crash_before_the_end_leaves_no_manifest_and_the_next_export_forgets_it(make_bundle, monkeypatch) -> None:
    bundle = make_bundle()
    (bundle.root / MANIFEST).unlink()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", crash)
        patched.setattr(os, "getpid", lambda: 1)
        write_manifest(bundle.root, bundle.manifest)
    assert "has no manifest.json" in refusal(bundle.root)
    assert write_manifest(bundle.root, bundle.manifest).manifest == bundle.manifest


def test_a_demonstration_pattern_that_is_no_regular_expression_is_refused(make_bundle):
    bundle = make_bundle()
    manifest = json.loads((bundle.root / MANIFEST).read_text())
    manifest["demonstration"] = {"pattern": "(", "description": "shapes"}
    (bundle.root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="regular expression"):
        Bundle.open(bundle.root, verify=False)
