"""A manifest whose forms for LoRAs contradict themselves or the contract is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.manifest import GraphTensor, LoraForm, Manifest
from mutoscope.errors import BundleError

from tests.bundles import PARAMETERS, Q, lora_form

FORM = lora_form()
GRAPH = FORM.graphs[0]


def with_inputs(change: Callable[[GraphTensor], GraphTensor | None]) -> LoraForm:
    inputs = tuple(changed for tensor in GRAPH.inputs if (changed := change(tensor)) is not None)
    return msgspec.structs.replace(FORM, graphs=(msgspec.structs.replace(GRAPH, inputs=inputs),))


def like(which: str, **changes: Any) -> Callable[[GraphTensor], GraphTensor]:
    return lambda tensor: msgspec.structs.replace(tensor, **changes) if tensor.name == which else tensor


def test_a_form_is_found_by_denoiser_and_precision(make_bundle: Any) -> None:
    bundle: Bundle = make_bundle(lora_forms=(FORM,))
    manifest: Manifest = bundle.manifest
    assert manifest.lora_form("denoiser", "fp32") == FORM
    assert manifest.lora_form("denoiser", "bf16") is None
    assert manifest.lora_form("denoiser_low", "fp32") is None
    assert manifest.graphs_of("denoiser", "fp32", with_loras=True) == FORM.graphs
    assert GRAPH.name == "denoiser-lora"
    assert list(bundle.verify())


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            with_inputs(lambda tensor: None if tensor.name == f"{Q}.lora_b" else tensor),
            f"has no input {Q}.lora_b",
        ),
        (
            with_inputs(like(f"{Q}.lora_a", shape=(5, "R"))),
            f"has the input {Q}.lora_a as float32 [5, R]; it must be float32 [6, R]",
        ),
        (
            with_inputs(like(f"{Q}.lora_a", dtype="float16")),
            f"has the input {Q}.lora_a as float16 [6, R]; it must be float32 [6, R]",
        ),
        (
            with_inputs(like(f"{Q}.lora_a", name="other.lora_a")),
            "has the input other.lora_a, which nothing feeds",
        ),
        (with_inputs(lambda tensor: None if tensor.name == "state" else tensor), "has no input state"),
        (
            with_inputs(lambda tensor: None if "lora" in tensor.name else tensor),
            "the denoiser in fp32 for LoRAs has no input for them",
        ),
        (
            msgspec.structs.replace(FORM, role="denoiser_low"),
            "a form for LoRAs is of denoiser, denoiser_low; it must be of one of denoiser",
        ),
        (
            msgspec.structs.replace(FORM, graphs=(msgspec.structs.replace(GRAPH, part=2),)),
            "the parts of the denoiser in fp32 for LoRAs are numbered 2",
        ),
        (
            msgspec.structs.replace(FORM, parameters={name: PARAMETERS[name] for name in PARAMETERS if name != Q}),
            f"has the input {Q}.lora_a, which nothing feeds",
        ),
    ],
)
def test_a_form_that_contradicts_the_contract_is_refused(make_bundle: Any, form: LoraForm, said: str) -> None:
    with pytest.raises(BundleError) as caught:
        make_bundle(lora_forms=(form,))
    assert said in str(caught.value)


def test_two_forms_of_one_denoiser_are_refused(make_bundle: Any) -> None:
    with pytest.raises(BundleError, match="more than one form for LoRAs has the role denoiser"):
        make_bundle(lora_forms=(FORM, FORM))


def test_a_file_of_a_form_that_the_manifest_does_not_list_is_refused(make_bundle: Any) -> None:
    bundle: Bundle = make_bundle(lora_forms=(FORM,))
    (bundle.root / GRAPH.file).unlink()
    with pytest.raises(BundleError, match=f"{GRAPH.file} is missing"):
        list(Bundle.open(bundle.root, verify=False).verify())
