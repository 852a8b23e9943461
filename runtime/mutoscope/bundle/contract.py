"""What the graphs of a bundle must be: the contract between export, bundle and runtime, written once.

Roles, stages, tiling, budgets, progress and the order in which graphs run all derive from this table. A manifest is
checked against it when it is read (`checks.py`), a session when it opens. Imports nothing of Mutoscope.

A denoiser takes `LOOP_INPUTS` anew in each step. Every other input of it stays the same for one video, and the manifest
says what feeds it: a conditioning, or a random tensor of the seed. What a step does with it is arithmetic in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONDITION, DENOISE, DECODE = "condition", "denoise", "decode"
STAGES = {CONDITION: "encoding the prompt", DENOISE: "denoising", DECODE: "decoding"}  # in order; for a person

NETWORK = "network"  # the dtype that a network has in the precision of its graph

# A denoiser in the form that LoRAs change has two inputs for each weight that they can change, named after it:
# A [in, R] and B [R, out], whose product is added to the weight, with one R for all of them.
LORA_A, LORA_B, LORA_RANK = ".lora_a", ".lora_b", "R"


@dataclass(frozen=True)
class Tensor:
    """An input or output that a role must have.

    Attributes:
        dtype: a NumPy name, or `NETWORK`.
        shape: symbols of the manifest's shapes as they stand; `*` for any size; and, in place of numbers that a
            manifest gives: `channels` of the latents, `latents` and `frames` of one call of the VAE, `height` and
            `width` of the frames of a window of latents.
    """

    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Role:
    """What one kind of graph is for, and its interface.

    Attributes:
        stage: when it runs, one of `STAGES`.
        takes: inputs that it must have; a denoiser also has one for each that the manifest feeds.
        gives: outputs that it must have; a text encoder also gives what its conditioning feeds on.
        caches: "gives" `cache_0`, `cache_1`, ...; or "passes" them on, as `next_cache_0`, ...; for the next call.
        grows_with: the symbols that activations are proportional to, once attention is fused.
        budget: the row of `building/engine_budget.py` by which the memory of an engine is checked.
        tiled: may run window by window.
        once: runs once in a video that is decoded whole.
        needed: every bundle has it; the others where a conditioning or an expert names them.
    """

    stage: str
    takes: Mapping[str, Tensor]
    gives: Mapping[str, Tensor]
    grows_with: str
    budget: str
    caches: str = ""
    tiled: bool = False
    once: bool = False
    needed: bool = True


_LATENTS = ("channels", "F", "h", "w")
_LOOP = {
    "latents": Tensor("float32", _LATENTS),
    "state": Tensor("float32", ("K", *_LATENTS)),
    "timestep": Tensor("float32", (1,)),
    "guidance_weights": Tensor("float32", ("B",)),
    "solver_a": Tensor("float32", ("K", "K")),
    "solver_b": Tensor("float32", ("K",)),
}
LOOP_INPUTS = tuple(_LOOP)
_STEP = {"next_state": _LOOP["state"], "velocity_peak": Tensor("float32", ())}
_CHUNK = {"latents": Tensor("float32", (1, "channels", "latents", "h", "w"))}
_FEATURES = {"features": Tensor("float32", (1, "*", "h", "w"))}
_FRAMES = {"frames": Tensor("uint8", ("frames", "height", "width", 3))}
_TEXT = {"input_ids": Tensor("int64", ("B", "L")), "attention_mask": Tensor("int64", ("B", "L"))}

_PICTURES = {"frames": Tensor("float32", ("frames", "height", "width", 3))}
_CONDITION = {"condition": Tensor("float32", ("channels", "latents", "h", "w"))}

_PIXELS = {"pixels": Tensor("float32", ("*", 3, "*", "*"))}
_IMAGE_EMBEDS = {"image_embeds": Tensor("float32", ("*", "*"))}

_IMAGE_ENCODER = Role(CONDITION, _PIXELS, _IMAGE_EMBEDS, grows_with="", budget="small", once=True, needed=False)
_ENCODER_FIRST = Role(CONDITION, _PICTURES, _CONDITION, "hw", "encoder", caches="gives", once=True, needed=False)
_ENCODER_NEXT = Role(CONDITION, _PICTURES, _CONDITION, "hw", "encoder", caches="passes", needed=False)
_DENOISER = Role(DENOISE, _LOOP, _STEP, grows_with="BFhw", budget="denoiser")
_FEATURES_FIRST = Role(DECODE, _CHUNK, _FEATURES, "hw", "features", caches="gives", once=True)
_FEATURES_NEXT = Role(DECODE, _CHUNK, _FEATURES, "hw", "features", caches="passes")
_DECODER_FIRST = Role(DECODE, _FEATURES, _FRAMES, "hw", "decoder", caches="gives", tiled=True, once=True)
_DECODER_NEXT = Role(DECODE, _FEATURES, _FRAMES, "hw", "decoder", caches="passes", tiled=True)


def _numbered(name: str, role: Role, most: int) -> dict[str, Role]:
    """A role that a bundle may have up to `most` times, as Diffusers numbers components: `name`, `name_2`, ..."""
    return {name: role} | {f"{name}_{number}": role for number in range(2, most + 1)}


_TEXT_ENCODER = Role(CONDITION, _TEXT, {}, grows_with="BL", budget="text", once=True, needed=False)

ROLES: Mapping[str, Role] = {
    **_numbered("text_encoder", _TEXT_ENCODER, most=3),
    "image_encoder": _IMAGE_ENCODER,
    "denoiser": _DENOISER,
    "denoiser_low": Role(DENOISE, _LOOP, _STEP, grows_with="BFhw", budget="denoiser", needed=False),
    "vae_encoder_first": _ENCODER_FIRST,
    "vae_encoder_next": _ENCODER_NEXT,
    "vae_features_first": _FEATURES_FIRST,
    "vae_features_next": _FEATURES_NEXT,
    "vae_decoder_first": _DECODER_FIRST,
    "vae_decoder_next": _DECODER_NEXT,
}
TILED = tuple(name for name, role in ROLES.items() if role.tiled)


def stage_of(role: str) -> str:
    """The stage that runs the graph of a role."""
    return ROLES[role].stage


def open_with(role: str) -> str:
    """The name that roles share whose graphs are open at the same time: of a stage, or of one encoder or expert."""
    stage = stage_of(role)
    return stage if stage == DECODE else role.removesuffix("_first").removesuffix("_next")
