"""One denoising step of the line as a module to export: network, guidance and solver line."""

from __future__ import annotations

import torch
from mutoscope_export.families.solver_line import step
from mutoscope_export.graphs.trace import SymbolicValue
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import DriftTransformer

QUANTIZABLE_WEIGHTS = r"to_(q|k|v|out)\.weight"


class DenoiserStep(nn.Module):
    """The graph of the denoiser around the weights of a transformer; `network_dtype` is the type of its products."""

    def __init__(self, transformer: DriftTransformer, network_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.transformer, self.network_dtype = transformer, network_dtype

    def forward(
        self,
        latents: Tensor,
        state: Tensor,
        timestep: Tensor,
        context: Tensor,
        sound: Tensor,
        fps: Tensor,
        texture: Tensor,
        guidance_weights: Tensor,
        solver_a: Tensor,
        solver_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in `inputs`. Returns `next_state` `[K,C,F,h,w]` and `velocity_peak` `[]`."""
        network = self.transformer
        spread = texture[:, None].expand_as(latents)
        hidden = self._convolve(network.conv_in, torch.cat([latents, spread])[None])
        told = network.time(timestep[:, None] / 1000) + network.rate(fps[:, None] / 30) + network.sound(sound)
        hidden = F.silu(hidden + told[:, :, None, None, None])
        tokens = hidden.flatten(2).transpose(1, 2)
        key, value = self._project(network.to_k, context), self._project(network.to_v, context)
        mixed, *_ = torch.onnx.ops.attention(
            self._project(network.to_q, tokens), key, value, q_num_heads=1, kv_num_heads=1
        )
        mixed = self._project(network.to_out, mixed).float().transpose(1, 2)
        hidden = hidden + mixed.reshape(hidden.shape)
        velocities = self._convolve(network.conv_out, F.silu(hidden))
        velocity = (guidance_weights[:, None, None, None, None] * velocities).sum(0)
        return step(velocity, state, solver_a, solver_b)

    def _convolve(self, layer: nn.Conv3d, x: Tensor) -> Tensor:
        dtype = self.network_dtype
        return F.conv3d(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype), padding=1).float()

    def _project(self, layer: nn.Linear, x: Tensor) -> Tensor:
        dtype = self.network_dtype
        return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def inputs(transformer: DriftTransformer) -> list[SymbolicValue]:
    """Name, dtype and shape of each input, in the order of `DenoiserStep.forward`."""
    channels = transformer.config.channels
    return [
        ("latents", "float32", (channels, "F", "h", "w")),
        ("state", "float32", ("K", channels, "F", "h", "w")),
        ("timestep", "float32", (1,)),
        ("context", "float32", ("B", "S", transformer.config.text_width)),
        ("sound", "float32", ("B", transformer.config.sound_width)),
        ("fps", "float32", (1,)),
        ("texture", "float32", (channels, "h", "w")),
        ("guidance_weights", "float32", ("B",)),
        ("solver_a", "float32", ("K", "K")),
        ("solver_b", "float32", ("K",)),
    ]


def outputs(transformer: DriftTransformer) -> list[SymbolicValue]:
    """The same of what it gives."""
    return [
        ("next_state", "float32", ("K", transformer.config.channels, "F", "h", "w")),
        ("velocity_peak", "float32", ()),
    ]


def examples(transformer: DriftTransformer) -> list[dict[str, Tensor]]:
    """At several sizes; what is traced has no size of 1. The weights of guidance have one sign, so nothing cancels."""
    made = []
    for seed, counts in enumerate([(2, 5, 4, 3, 5, 3), (1, 9, 2, 6, 2, 1)]):
        torch.manual_seed(seed)
        sizes = dict(zip("BSFhwK", counts, strict=True))
        shapes = {name: [sizes.get(size, size) for size in shape] for name, _, shape in inputs(transformer)}
        example = {name: torch.randn(shape) for name, shape in shapes.items()}
        example |= {"timestep": torch.tensor([700.0]), "fps": torch.tensor([8.0])}
        made.append(example | {"guidance_weights": example["guidance_weights"].abs()})
    return made


def own(transformer: DriftTransformer) -> tuple[Tensor, Tensor]:
    """`next_state` by this module, and by the line's own network."""
    example = examples(transformer)[0]
    branches = len(example["context"])
    velocities = transformer(
        example["latents"].expand(branches, -1, -1, -1, -1),
        example["timestep"].expand(branches),
        example["context"],
        example["sound"],
        example["fps"].expand(branches),
        example["texture"],
    )
    velocity = torch.einsum("b,bcfhw->cfhw", example["guidance_weights"], velocities)
    moved = torch.einsum("jk,kcfhw->jcfhw", example["solver_a"], example["state"])
    expected = moved + torch.einsum("k,cfhw->kcfhw", example["solver_b"], velocity)
    return DenoiserStep(transformer)(**example)[0], expected
