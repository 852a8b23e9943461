"""Whether a manifest agrees with itself and with the contract. Everything found wrong is told at once.

Knows manifests and the contract. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import msgspec
from mutoscope_engines.precisions import PRECISIONS
from mutoscope_engines.symbols import symbols_of

from ..errors import EXPORT_AGAIN, BundleError
from ..solvers.options import ScheduleError
from ..solvers.solvers import build_schedule
from ..values.frame_rates import parse_frame_rate
from .conditionings import (
    ControlConditioning,
    ImageConditioning,
    ImageEmbedsConditioning,
    NumberConditioning,
    TextConditioning,
    VideoConditioning,
)
from .contract import DENOISE, LOOP_INPUTS, LORA_RANK, ROLES, TILED
from .interface import complaints_of, fed_by_loras, interface_of, written
from .manifest import FORMAT_VERSION, MANIFEST, NUMBERS, Graph, GraphTensor, LoraForm, Manifest


def decode_manifest(content: bytes) -> Manifest:
    """The manifest that a file holds.

    Raises:
        BundleError: damaged, of another version, out of range, or against itself or the contract.
    """
    try:
        version = msgspec.json.decode(content)["format_version"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error!r}. Copy the bundle again, or {EXPORT_AGAIN}") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {version}, and this Mutoscope reads version {FORMAT_VERSION}. Install the "
            f"version of Mutoscope that wrote it, or {EXPORT_AGAIN}"
        )
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} cannot be read: {error}. Copy the bundle again, or {EXPORT_AGAIN}") from error
    if complaints := list(_complaints(manifest)):
        raise BundleError(f"{MANIFEST} contradicts itself: {'; '.join(complaints)}. To mend the bundle, {EXPORT_AGAIN}")
    for role in manifest.roles:
        for precision in manifest.precisions():
            manifest.graphs_of(role, precision)
    return manifest


def impossible_defaults(manifest: Manifest) -> Iterator[str]:
    """Why a request that says nothing but its prompt could not be served; nothing where it can."""
    defaults = manifest.defaults
    for name, sizes in manifest.sizes.items():
        if (given := getattr(defaults, name)) not in sizes:
            allowed = f"{sizes[0]} to {sizes[-1]} in steps of {sizes.step}"
            yield f"the default {name} is {given}, and the model takes {allowed}"
    try:
        build_schedule(defaults.scheduler, manifest.default_scheduler, defaults.num_inference_steps, defaults.sigmas)
    except ScheduleError as error:
        yield f"no schedule can be made from the defaults: {error}"
    for each in manifest.conditionings:
        if isinstance(each, NumberConditioning):
            value = getattr(defaults, each.name)
            number = float(parse_frame_rate(value) or 0) if each.name == "fps" else value
            if not each.minimum <= number <= each.maximum:
                yield f"the default {each.name} is {value}, and the model takes {each.minimum:g} to {each.maximum:g}"


def _complaints(manifest: Manifest) -> Iterator[str]:
    if unknown := {graph.role for graph in manifest.all_graphs} - set(ROLES):
        yield f"graphs have the role {_listed(unknown)}; this Mutoscope knows only the roles {_listed(ROLES)}"
        return
    if unknown := {graph.precision for graph in manifest.all_graphs} - set(PRECISIONS):
        known = _listed(PRECISIONS)
        yield f"graphs have the precision {_listed(unknown)}; this Mutoscope knows only the precisions {known}"
        return
    if wrong := [wrong for check in _OF_DATA for wrong in check(manifest)]:
        yield from wrong  # the interfaces below follow from them
        return
    yield from _wrong_graphs(manifest)
    yield from _wrong_lora_forms(manifest)
    yield from _wrong_files(manifest)
    yield from impossible_defaults(manifest)
    if manifest.preview and len(manifest.preview.weights) != manifest.geometry.latent_channels:
        channels = manifest.geometry.latent_channels
        yield f"preview.weights has {len(manifest.preview.weights)} rows; it must have one for each channel, {channels}"


def _wrong_experts(manifest: Manifest) -> Iterator[str]:
    denoisers = [expert.role for expert in manifest.experts]
    known = {name for name, role in ROLES.items() if role.stage == DENOISE}
    if not denoisers or not set(denoisers) <= known:
        yield f"the experts have the roles {_listed(denoisers) or 'none'}; use one or more of {_listed(known)}"
    from_above = [expert.above for expert in manifest.experts]
    if any(one <= other for one, other in pairwise(from_above)) or from_above[-1:] not in ([], [0]):
        found = ", ".join(f"{above:g}" for above in from_above)
        yield f"the experts work above the timesteps {found}; each must be lower than the one before, and the last 0"
    yield from _twice("more than one expert has the role", denoisers)


def _wrong_conditionings(manifest: Manifest) -> Iterator[str]:
    encoders = [name for name, role in ROLES.items() if "input_ids" in role.takes]
    for text in manifest.texts:
        if text.role not in encoders:
            yield f"the conditioning {text.name} has the encoder {text.role!r}; it must be one of {_listed(encoders)}"
        if text.negative is not None and not isinstance(getattr(manifest.defaults, text.negative, None), str):
            yield f"the conditioning {text.name} has the negative text {text.negative!r}, which has no default"
    for number in manifest.numbers:
        if number.name not in NUMBERS:
            yield f"the conditioning {number.name} is not a number with a default; use one of {_listed(NUMBERS)}"
    yield from _twice("more than one conditioning has the encoder", [text.role for text in manifest.texts])
    valued = [video.name for video in manifest.videos] + [control.name for control in manifest.controls]
    valued += [image.name for image in manifest.images] + [number.name for number in manifest.numbers]
    yield from _twice("more than one conditioning has the name", valued)
    yield from _twice(
        "more than one size has the symbol", [*(text.symbol for text in manifest.texts), *"BFhwK", LORA_RANK]
    )


def _wrong_encoders(manifest: Manifest) -> Iterator[str]:
    clips: Iterable[ImageConditioning | VideoConditioning | ControlConditioning]
    clips = (*manifest.images, *manifest.videos, *manifest.controls)
    for each in clips:
        for encoder, calls, caches in ((each.role, "first call", "gives"), (each.following, "other calls", "passes")):
            known = [name for name, role in ROLES.items() if "frames" in role.takes and role.caches == caches]
            if encoder is not None and encoder not in known:
                yield (
                    f"the conditioning {each.name} has the encoder {encoder!r} for its {calls}; use one of "
                    f"{_listed(known)}"
                )


def _wrong_pictures(manifest: Manifest) -> Iterator[str]:
    for image in manifest.images:
        for encoder in image.roles:
            if encoder in ROLES and (unknown := set(image.feeds) - set(ROLES[encoder].gives)):
                yield f"the conditioning {image.name} feeds {_listed(unknown)}, which the {encoder} does not give"
        if image.last is not None and image.following is None:
            yield f"the conditioning {image.name} has the last frame {image.last!r}, and no encoder for its other calls"

    encoders = [name for name, role in ROLES.items() if "pixels" in role.takes]
    for embeds in manifest.image_embeds:
        if embeds.role not in encoders:
            yield f"the conditioning {embeds.name} has the encoder {embeds.role!r}; use one of {_listed(encoders)}"
        elif unknown := set(embeds.feeds) - set(ROLES[embeds.role].gives):
            yield f"the conditioning {embeds.name} feeds {_listed(unknown)}, which the {embeds.role} does not give"


def _wrong_feeds(manifest: Manifest) -> Iterator[str]:
    """Inputs of the denoiser that two sources feed, or another one than may, and latents that nothing draws."""
    inputs = [number.input for number in manifest.numbers]
    inputs += [name for text in manifest.texts for name in text.feeds.values()]
    inputs += [name for image in manifest.images for name in (*image.feeds.values(), image.given)]
    inputs += [name for embeds in manifest.image_embeds for name in embeds.feeds.values()]
    inputs += [name for control in manifest.controls for name in (*control.feeds.values(), control.scale_input)]
    inputs += [draw.input for draw in manifest.draws]
    yield from _twice("more than one conditioning or draw feeds the denoiser's input", inputs)
    if taken := (set(LOOP_INPUTS) - {"latents"}) & set(inputs):
        yield f"a conditioning or draw feeds the denoiser's input {_listed(taken)}, which only the steps may feed"
    latents = (manifest.geometry.latent_channels, *"Fhw")
    if latents not in [draw.shape for draw in manifest.draws if draw.input == "latents"]:
        yield f"no draw has the input latents and the shape [{', '.join(map(str, latents))}], which every video needs"


def _twice(sentence: str, names: list[str]) -> Iterator[str]:
    if twice := {name for name in names if names.count(name) > 1}:
        yield f"{sentence} {_listed(twice)}"


def _wrong_frames(manifest: Manifest) -> Iterator[str]:
    frames, geometry = manifest.frames, manifest.geometry
    patch, (first, following), latents = geometry.patch_size[0], frames.frames_per_call, frames.latents_per_call[1]
    if following != latents * geometry.vae_scale_factor_temporal:
        yield (
            f"vae_scale_factor_temporal is {geometry.vae_scale_factor_temporal}; it must be {following} / {latents}, "
            "as a call of the decoder has that many frames and latent frames"
        )
    if frames.most < frames.first:
        yield f"frames.most is {frames.most}; it must be at least {frames.first}, as frames.first is"
    elif frames.first < first or (frames.first - first) % following or frames.step % following:
        yield (
            f"videos have {frames.first}, {frames.first + frames.step}, ... frames; the decoder makes {first} in its "
            f"first call and {following} in every other, and a video must be a whole number of calls"
        )
    elif any(frames.latent_frames(count) % patch for count in (frames.first, frames.first + frames.step)):
        found = ", ".join(str(frames.latent_frames(count)) for count in (frames.first, frames.first + frames.step))
        yield f"videos have {found}, ... latent frames; each must be a multiple of {patch}, the patch of the denoiser"


_OF_DATA = (_wrong_experts, _wrong_conditionings, _wrong_encoders, _wrong_pictures, _wrong_feeds, _wrong_frames)


def _wrong_graphs(manifest: Manifest) -> Iterator[str]:
    yield from (f"no graph has the role {role}" for role in manifest.roles if not manifest.precisions(role))
    of_experts = {each.role: manifest.precisions(each.role) for each in manifest.experts}
    if all(of_experts.values()) and not manifest.precisions():
        has = "; ".join(f"{role} has {_listed(precisions)}" for role, precisions in of_experts.items())
        yield f"no precision has graphs of every expert: {has}"
    shapes = [tensor.shape for graph in manifest.all_graphs for tensor in (*graph.inputs, *graph.outputs)]
    shapes += [draw.shape for draw in manifest.draws]
    named = {symbol for shape in shapes for size in shape if isinstance(size, str) for symbol in symbols_of(size)}
    if unknown := named - set(manifest.symbol_ranges):
        known = _listed(manifest.symbol_ranges)
        yield f"shapes of graphs or draws have the size {_listed(unknown)}; use numbers, {known} and their products"
    for chain in _chains(manifest.graphs):
        yield from _wrong_chain(manifest, chain)
    yield from _disagreements(manifest)


def _wrong_chain(manifest: Manifest, chain: list[Graph], form: LoraForm | None = None) -> Iterator[str]:
    where = f"the {chain[0].role} in {chain[0].precision}{' for LoRAs' if form else ''}"
    numbers = [graph.part for graph in chain]
    if numbers != ([0] if len(chain) == 1 else [*range(1, len(chain) + 1)]):
        found = _listed(map(str, numbers))
        yield f"the parts of {where} are numbered {found}; a whole graph must be 0, and parts 1, 2 and so on"
    else:
        yield from _wrongly_passed(chain)
        yield from complaints_of(manifest, chain, form)


def _wrong_lora_forms(manifest: Manifest) -> Iterator[str]:
    experts = [expert.role for expert in manifest.experts]
    yield from _twice("more than one form for LoRAs has the role", [form.role for form in manifest.lora_forms])
    for form in manifest.lora_forms:
        roles = {form.role, *(graph.role for graph in form.graphs)}
        if len(roles) > 1 or not roles <= set(experts):
            yield f"a form for LoRAs is of {_listed(roles)}; it must be of one of {_listed(experts)}"
            continue
        for chain in _chains(form.graphs):
            yield from _wrong_chain(manifest, chain, form)
            if not fed_by_loras(form, chain):
                yield f"the {form.role} in {chain[0].precision} for LoRAs has no input for them"


def _wrong_files(manifest: Manifest) -> Iterator[str]:
    named = {file for graph in manifest.all_graphs for file in (graph.file, *graph.weights)}
    if unlisted := named.union(text.tokenizer for text in manifest.texts) - set(manifest.files):
        yield f"its files do not include {_listed(unlisted)}"


def _chains(graphs: Iterable[Graph]) -> list[list[Graph]]:
    """The parts of each graph, in order."""
    chains: dict[tuple[str, str], list[Graph]] = {}
    for graph in sorted(graphs, key=lambda graph: graph.part):
        chains.setdefault((graph.role, graph.precision), []).append(graph)
    return list(chains.values())


def _wrongly_passed(chain: list[Graph]) -> Iterator[str]:
    """What a part takes from another part that does not come before it, or gives it in another form."""
    passed = {tensor.name for graph in chain for tensor in graph.outputs} if len(chain) > 1 else set()
    made: dict[str, GraphTensor] = {}
    for graph in chain:
        for tensor in graph.inputs:
            if tensor.name in passed and made.get(tensor.name) != tensor:
                yield f"no part before {graph.name} in {graph.precision} gives {tensor.name} as {written(tensor)}"
        made |= {tensor.name: tensor for tensor in graph.outputs}


def _disagreements(manifest: Manifest) -> Iterator[str]:
    """Where one graph gives another form than the next takes: of caches, features, and encoded texts and pictures."""
    chains = {(chain[0].role, chain[0].precision): interface_of(chain) for chain in _chains(manifest.graphs)}
    for (role, precision), interface in chains.items():
        following = chains.get((role.replace("_first", "_next"), precision))
        if (
            role.endswith("_first")
            and following
            and dict(interface.caches)
            != {name: tensor for name, tensor in following.inputs.items() if name.startswith("cache_")}
        ):
            yield f"the caches that the {role} in {precision} gives differ from those that the next call takes"
    features = {interface.inputs["features"] for (role, _), interface in chains.items()
                if role in TILED and "features" in interface.inputs}  # fmt: skip
    features |= {interface.outputs["features"] for interface in chains.values() if "features" in interface.outputs}
    if len(features) > 1:
        found = " and ".join(sorted(map(written, features)))
        yield f"the decoder's graphs give and take features as {found}; these must be equal"
    into_tokens: Iterable[TextConditioning | ImageEmbedsConditioning] = (*manifest.texts, *manifest.image_embeds)
    for encoded in into_tokens:
        for output, name in encoded.feeds.items():
            shapes = {each.outputs[output].shape for (role, _), each in chains.items()
                      if role == encoded.role and output in each.outputs}  # fmt: skip
            shapes |= {each.inputs[name].shape for (role, _), each in chains.items()
                       if ROLES[role].stage == DENOISE and name in each.inputs}  # fmt: skip
            if len(shapes) > 1:
                found = " and ".join(sorted(f"[{', '.join(map(str, shape))}]" for shape in shapes))
                yield f"the {encoded.role} and the denoiser have {name} in the shapes {found}; these must be equal"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
