"""What a model is given beside noise, as its manifest says it: prompts, numbers, pictures, clips.

Knows the fields of a request and the inputs of graphs by name. Knows nothing of how either is read (`conditions/`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from .record import Positive, Record, Single


class TextConditioning(Record, frozen=True, tag_field="kind", tag="text"):
    """A prompt: tokens for a text encoder, which makes inputs of the denoiser of them.

    `name` is the field of the request; `feeds` maps outputs of the encoder to inputs of the denoiser.
    """

    name: str
    role: str  # the graph that encodes it
    feeds: dict[str, str]
    max_sequence_length: Positive
    pad_token_id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    required: bool = True
    negative: str | None = None  # the field of the request with what guidance steers away from
    tokenizer: str = "tokenizer.json"
    cleaning: str = "none"  # one of `conditions.cleaning.CLEANINGS`
    symbol: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z]\w*\Z")] = (
        "L"  # the length of its tokens in the shapes of graphs
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of the request that it reads."""
        return (self.name,) if self.negative is None else (self.name, self.negative)

    @property
    def roles(self) -> tuple[str, ...]:
        """The graphs that encode it."""
        return (self.role,)


class NumberConditioning(Record, frozen=True, tag_field="kind", tag="number"):
    """A number of the request, such as the frame rate, as an input f32 `[1]` of the denoiser.

    `name` is the field of the request, whose default the bundle has.
    """

    name: str
    input: str  # of the denoiser
    minimum: Single
    maximum: Single
    roles: ClassVar[tuple[str, ...]] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.name,)


class ImageConditioning(Record, frozen=True, tag_field="kind", tag="image"):
    """A picture that the video begins with, and maybe one that it ends with: the VAE makes latent frames of them.

    `name` and `last` are the fields of the request; `feeds` maps outputs of the encoder to inputs of the denoiser.
    Without `following` the picture alone is encoded, into one latent frame. With it the whole clip is, whose frames are
    mid grey where no picture is: into as many latent frames as the video has. Where it is not required and no picture
    is given, all of these inputs are zeros.
    """

    name: str
    role: str  # the graph that encodes the first frame
    feeds: dict[str, str]
    # An input of the denoiser, f32 `[F]`: 1 for the latent frame that the picture is, 0 for all others. Of a whole clip
    # `[frames of a latent frame, F]`: 1 for each frame that a picture is; the first frame counts for all of its latent.
    given: str
    required: bool = True
    following: str | None = None  # the graph that encodes the frames of every other call
    last: str | None = None
    last_required: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.name,) if self.last is None else (self.name, self.last)

    @property
    def roles(self) -> tuple[str, ...]:
        """As `TextConditioning` has it, the one for the first call first."""
        return (self.role,) if self.following is None else (self.role, self.following)


class ImageEmbedsConditioning(Record, frozen=True, tag_field="kind", tag="image_embeds"):
    """Pictures as CLIP sees them: tokens of what they show, for the denoiser to attend to.

    `name` and `last` are the fields of the request, both of which are needed; `feeds` maps outputs of the encoder to
    inputs of the denoiser.
    """

    name: str
    role: str  # the graph that encodes them
    feeds: dict[str, str]
    last: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.name,) if self.last is None else (self.name, self.last)

    @property
    def roles(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.role,)


class VideoConditioning(Record, frozen=True, tag_field="kind", tag="video"):
    """A clip that the video is made from: its latents take the place of some of the noise, as much as `strength` says.

    `name` and `strength` are the fields of the request. It feeds no input of the denoiser of its own, and never has to
    be given.
    """

    name: str
    role: str  # the graph that encodes the first frames
    following: str  # the graph that encodes the frames of every other call
    strength: str = "strength"

    @property
    def fields(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.name, self.strength)

    @property
    def roles(self) -> tuple[str, ...]:
        """As `ImageConditioning` has it."""
        return (self.role, self.following)


class ControlConditioning(Record, frozen=True, tag_field="kind", tag="control"):
    """A clip that controls the video, a mask of what is to be made, and pictures of what is to be seen in it.

    `name`, `mask`, `references` and `scale` are the fields of the request, none of which is needed. Two inputs of the
    denoiser are made of them. The one that `feeds` names for the output of the encoder is f32 `[2 C + s * s, F, h, w]`,
    with s the spatial scale of the VAE: the latents of what is kept and of what is made anew, and the mask.
    `scale_input` is f32 `[layers]`: how much the control counts in each layer that it reaches. The latent frames of the
    references come first, and F counts them, too; the decoder does not get them.
    """

    name: str
    mask: str
    references: str
    scale: str
    role: str  # the graph that encodes the first frame, and each of the references
    following: str  # the graph that encodes the frames of every other call
    feeds: dict[str, str]
    scale_input: str
    layers: Positive

    @property
    def fields(self) -> tuple[str, ...]:
        """As `TextConditioning` has it."""
        return (self.name, self.mask, self.references, self.scale)

    @property
    def roles(self) -> tuple[str, ...]:
        """As `TextConditioning` has it, the one for the first call first."""
        return (self.role, self.following)


Conditioning = (
    TextConditioning
    | NumberConditioning
    | ImageConditioning
    | ImageEmbedsConditioning
    | VideoConditioning
    | ControlConditioning
)
