"""Whether a manifest agrees with itself and with the contract. Everything found wrong is told at once.

Knows manifests and the contract. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import msgspec
from mutoscope_engines.precisions import PRECISIONS
from mutoscope_engines.symbols import symbols_of

from ..errors import BundleError
from ..solvers.options import ScheduleError
from ..solvers.solvers import build_schedule
from ..values.frame_rates import parse_frame_rate
from .contract import CONDITION, DENOISE, LOOP_INPUTS, ROLES, TILED
from .interface import complaints_of, interface_of
from .manifest import FORMAT_VERSION, MANIFEST, NUMBERS, Graph, GraphTensor, Manifest, NumberConditioning


def decode_manifest(content: bytes) -> Manifest:
    """The manifest that a file holds.

    Raises:
        BundleError: damaged, of another version, out of range, or against itself or the contract.
    """
    try:
        version = msgspec.json.decode(content)["format_version"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error!r}. Copy or export the bundle again") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format version {version}, this Mutoscope reads {FORMAT_VERSION}. Export it again, "
            "with overwrite: mutoscope export CHECKPOINT BUNDLE; or install the version of Mutoscope that wrote it"
        )
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{MANIFEST} is not what this Mutoscope reads: {error}. Export the bundle again") from error
    if complaints := list(_complaints(manifest)):
        raise BundleError(f"{MANIFEST} contradicts itself: {'; '.join(complaints)}. Export the bundle again")
    for role in manifest.roles:
        for precision in manifest.precisions():
            manifest.graphs_of(role, precision)
    return manifest


def impossible_defaults(manifest: Manifest) -> Iterator[str]:
    """Why a request that says nothing but its prompt could not be served; nothing where it can."""
    defaults = manifest.defaults
    for name, sizes in manifest.sizes.items():
        if (given := getattr(defaults, name)) not in sizes:
            yield f"the default {name} is {given}; its networks take {sizes[0]} to {sizes[-1]} in steps of {sizes.step}"
    try:
        build_schedule(defaults.scheduler, manifest.default_scheduler, defaults.num_inference_steps, defaults.sigmas)
    except ScheduleError as error:
        yield f"the defaults give no schedule: {error}"
    for each in manifest.conditionings:
        if isinstance(each, NumberConditioning):
            value = getattr(defaults, each.name)
            number = float(parse_frame_rate(value) or 0) if each.name == "fps" else value
            if not each.minimum <= number <= each.maximum:
                yield f"the default {each.name} is {value}; its networks take {each.minimum:g} to {each.maximum:g}"


def _complaints(manifest: Manifest) -> Iterator[str]:
    if unknown := {graph.role for graph in manifest.graphs} - set(ROLES):
        yield f"there are graphs of {_listed(unknown)}; known are {_listed(ROLES)}"
        return
    if unknown := {graph.precision for graph in manifest.graphs} - set(PRECISIONS):
        yield f"there are graphs in {_listed(unknown)}; known are {_listed(PRECISIONS)}"
        return
    if wrong := [wrong for check in _OF_DATA for wrong in check(manifest)]:
        yield from wrong  # the interfaces below follow from them
        return
    yield from _wrong_graphs(manifest)
    yield from _wrong_files(manifest)
    yield from impossible_defaults(manifest)
    if manifest.preview and len(manifest.preview.weights) != manifest.geometry.latent_channels:
        yield f"preview has {len(manifest.preview.weights)} rows for {manifest.geometry.latent_channels} channels"


def _wrong_experts(manifest: Manifest) -> Iterator[str]:
    denoisers = [expert.role for expert in manifest.experts]
    if not denoisers or not set(denoisers) <= {name for name in ROLES if ROLES[name].stage == DENOISE}:
        yield f"the experts are {_listed(denoisers) or 'none'}; they are graphs of a denoiser"
    from_above = [expert.above for expert in manifest.experts]
    if any(one <= other for one, other in pairwise(from_above)) or from_above[-1:] not in ([], [0]):
        yield "the experts are not in order: each works from a lower timestep on than the one before, the last from 0"
    yield from _twice("expert", denoisers)


def _wrong_conditionings(manifest: Manifest) -> Iterator[str]:
    for text in manifest.texts:
        if text.role not in ROLES or ROLES[text.role].stage != CONDITION:
            yield f"the conditioning {text.name} is encoded by {text.role!r}, which is no encoder"
        if text.negative is not None and not isinstance(getattr(manifest.defaults, text.negative, None), str):
            yield f"the conditioning {text.name} is steered away from {text.negative!r}, a text that has no default"
    for number in manifest.numbers:
        if number.name not in NUMBERS:
            yield f"the conditioning {number.name} is no number that has a default; those are {_listed(NUMBERS)}"
    yield from _twice("conditioning", [each.name for each in manifest.conditionings])
    yield from _twice("symbol", [*(text.symbol for text in manifest.texts), *"BFhwK"])


def _wrong_feeds(manifest: Manifest) -> Iterator[str]:
    """What the denoiser is fed twice, or in each step anew, or not at all."""
    inputs = [number.input for number in manifest.numbers]
    inputs += [name for text in manifest.texts for name in text.feeds.values()]
    inputs += [draw.input for draw in manifest.draws]
    yield from _twice("input of the denoiser", inputs)
    if taken := (set(LOOP_INPUTS) - {"latents"}) & set(inputs):
        yield f"{_listed(taken)} of the denoiser changes in each step; nothing else may feed it"
    latents = (manifest.geometry.latent_channels, *"Fhw")
    if latents not in [draw.shape for draw in manifest.draws if draw.input == "latents"]:
        yield f"no draw is of the latents [{', '.join(map(str, latents))}]"


def _twice(what: str, names: list[str]) -> Iterator[str]:
    if twice := {name for name in names if names.count(name) > 1}:
        yield f"there are two of the {what} {_listed(twice)}"


def _wrong_frames(manifest: Manifest) -> Iterator[str]:
    frames, geometry = manifest.frames, manifest.geometry
    patch, (first, following), latents = geometry.patch_size[0], frames.frames_per_call, frames.latents_per_call[1]
    if following != latents * geometry.vae_scale_factor_temporal:
        yield (
            f"vae_scale_factor_temporal is {geometry.vae_scale_factor_temporal}, but the decoder makes {following} "
            f"frames from {latents} latent frames"
        )
    if frames.most < frames.first:
        yield f"frames.most is {frames.most}, less than frames.first, {frames.first}"
    elif frames.first < first or (frames.first - first) % following or frames.step % following:
        yield (
            f"videos of {frames.first}, {frames.first + frames.step}, ... frames are no whole calls of a decoder that "
            f"gives {first} frames and then {following} each"
        )
    elif any(frames.latent_frames(count) % patch for count in (frames.first, frames.first + frames.step)):
        yield f"videos of {frames.first} frames and {frames.step} more are no whole patches of {patch} latent frames"


_OF_DATA = (_wrong_experts, _wrong_conditionings, _wrong_feeds, _wrong_frames)


def _wrong_graphs(manifest: Manifest) -> Iterator[str]:
    yield from (f"there is no graph of the {role}" for role in manifest.roles if not manifest.precisions(role))
    if not manifest.precisions():
        yield "there is no precision in which the whole denoiser is there"
    shapes = [tensor.shape for graph in manifest.graphs for tensor in (*graph.inputs, *graph.outputs)]
    shapes += [draw.shape for draw in manifest.draws]
    named = {symbol for shape in shapes for size in shape if isinstance(size, str) for symbol in symbols_of(size)}
    if unknown := named - set(manifest.symbol_ranges):
        yield f"shapes of its graphs and draws name {_listed(unknown)}, which nothing gives a size"
    for chain in _chains(manifest.graphs):
        where = f"the {chain[0].role} in {chain[0].precision}"
        numbers = [graph.part for graph in chain]
        if numbers != ([0] if len(chain) == 1 else [*range(1, len(chain) + 1)]):
            yield f"the graphs of {where} are numbered {_listed(map(str, numbers))}; one is 0, parts 1, 2, ..."
        else:
            yield from _wrongly_passed(chain)
            yield from complaints_of(manifest, chain)
    yield from _disagreements(manifest)


def _wrong_files(manifest: Manifest) -> Iterator[str]:
    named = {file for graph in manifest.graphs for file in (graph.file, *graph.weights)}
    if unlisted := named.union(text.tokenizer for text in manifest.texts) - set(manifest.files):
        yield f"it does not list {_listed(unlisted)}"


def _chains(graphs: Iterable[Graph]) -> list[list[Graph]]:
    """The parts of each graph, in order."""
    chains: dict[tuple[str, str], list[Graph]] = {}
    for graph in sorted(graphs, key=lambda graph: graph.part):
        chains.setdefault((graph.role, graph.precision), []).append(graph)
    return list(chains.values())


def _wrongly_passed(chain: list[Graph]) -> Iterator[str]:
    """What parts take of each other otherwise than an earlier one gives it."""
    passed = {tensor.name for graph in chain for tensor in graph.outputs} if len(chain) > 1 else set()
    made: dict[str, GraphTensor] = {}
    for graph in chain:
        for tensor in graph.inputs:
            if tensor.name in passed and made.get(tensor.name) != tensor:
                yield f"{graph.name} in {graph.precision} takes {tensor.name} otherwise than a part before it gives it"
        made |= {tensor.name: tensor for tensor in graph.outputs}


def _disagreements(manifest: Manifest) -> Iterator[str]:
    """Where one graph gives another form than the next takes: of caches, features, and encoded texts."""
    chains = {(chain[0].role, chain[0].precision): interface_of(chain) for chain in _chains(manifest.graphs)}
    for (role, precision), interface in chains.items():
        following = chains.get((role.replace("_first", "_next"), precision))
        if (
            role.endswith("_first")
            and following
            and dict(interface.caches)
            != {name: tensor for name, tensor in following.inputs.items() if name.startswith("cache_")}
        ):
            yield f"the caches of the {role} in {precision} are not those that the next call takes"
    features = {interface.inputs["features"] for (role, _), interface in chains.items()
                if role in TILED and "features" in interface.inputs}  # fmt: skip
    features |= {interface.outputs["features"] for interface in chains.values() if "features" in interface.outputs}
    if len(features) > 1:
        yield "its graphs do not agree on the shape of the features"
    for text in manifest.texts:
        for output, name in text.feeds.items():
            shapes = {each.outputs[output].shape for (role, _), each in chains.items()
                      if role == text.role and output in each.outputs}  # fmt: skip
            shapes |= {each.inputs[name].shape for (role, _), each in chains.items()
                       if ROLES[role].stage == DENOISE and name in each.inputs}  # fmt: skip
            if len(shapes) > 1:
                yield f"its graphs do not agree on the shape of {name}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
