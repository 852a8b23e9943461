"""Pictures that a video follows: read as a person sees them, and resized as Diffusers does, bit for bit.

Knows picture files, and the last frame of video files. Knows no request, no model and no bundle.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError
from .video_files import VideoError, last_frame

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]  # [H, W, 3]

MOST_PIXELS = 2**27  # above the 102 million of the largest cameras; about 1 GB while it is read
CLIP_PIXELS = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
READABLE = "PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, PPM or QOI"
# Pillow has more, some of which start other programs or take any bytes for a picture.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI")
_FILTERS = threading.Lock()  # those of warnings are the whole process's
_PHOTOMETRIC = 262  # the tag of a TIFF; 0: the smallest value is white
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
# FFmpeg takes each of the tiles of such a picture for a video.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels uint8 `[H, W, 3]`, and what the caller should know of how they were read."""

    pixels: Pixels
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The same for the same pixels, however they are stored: `640x480 sha256:` and 64 hexadecimal digits."""
        height, width, _ = self.pixels.shape
        return f"{width}x{height} sha256:{hashlib.sha256(self.pixels.tobytes()).hexdigest()}"


PictureSource = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Picture


def open_picture(source: PictureSource, *, name: str = "image") -> Pixels:
    """A picture as a person sees it, uint8 `[H, W, 3]`; of a video file, its last frame. See `read_picture`."""
    return read_picture(source, name=name).pixels


def read_picture(source: PictureSource, *, name: str = "image", beside: int = 0) -> Picture:
    """A picture as a person sees it; of a video file, its last frame.

    It is turned as its EXIF data says. Transparent parts become white. 16 bits become the upper 8. Of several frames
    or pages, the first counts. As in Diffusers, color profiles are not applied.

    Args:
        source: a path, the bytes of a file, or uint8 `[H, W, 3]`; what was read before is given back. Nothing is ever
            fetched.
        name: the parameter that it is the value of, for errors.
        beside: pixels of others that are in memory with it, and count too.

    Raises:
        RequestError: it is not a picture that can be read, or has more than `MOST_PIXELS`; found before any pixel is
            decoded.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        return Picture(_of_array(source, name))
    if isinstance(source, (bytes, bytearray, memoryview)):
        shown = f"{len(source)} bytes"
        if not len(source):
            raise RequestError(f"{name} is empty: it has no bytes; give those of a picture file")
        return _read(io.BytesIO(source), name, shown, beside)
    if isinstance(source, (str, os.PathLike)):
        with opened(os.fspath(source), name) as file:
            return _read(file, name, shown_path(os.fspath(source)), beside)
    raise RequestError(
        f"{name} must be a path, the bytes of a picture file, or an array uint8 [H, W, 3]; got {kind_of(source)}. "
        "Of a PIL picture, give numpy.asarray(picture.convert('RGB'))"
    )


def read_pictures(sources: Sequence[PictureSource], *, name: str) -> tuple[Picture, ...]:
    """Several, as `read_picture` reads each.

    Raises:
        RequestError: they are no list or tuple, or one of them cannot be read, or they have more than `MOST_PIXELS`
            together.
    """
    if not isinstance(sources, (list, tuple)):
        raise RequestError(f"{name} must be a tuple of pictures, such as {name}=('cat.png',); got {kind_of(sources)}")
    read: list[Picture] = []
    for source in sources:
        read.append(read_picture(source, name=name, beside=sum(each.pixels.size // 3 for each in read)))
    return tuple(read)


def fitted(picture: Pixels, height: int, width: int) -> Pixels:
    """Resized to uint8 `[height, width, 3]` as the `VideoProcessor` of Diffusers does, whatever the aspect."""
    from PIL import Image

    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def letterboxed(
    picture: Pixels, height: int, width: int, multiple: int, *, name: str = "reference_images"
) -> NDArray[np.float32]:
    """A picture in the middle of a white frame, with its own aspect, as `WanVACEPipeline` shows a reference.

    Args:
        picture: uint8 `[H, W, 3]`.
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        multiple: of the sides that the picture is resized to first, the spatial scale of the VAE.
        name: the parameter that it is the value of, for errors.

    Returns:
        Levels 0..255, f32 `[height, width, 3]`: the second resizing does not round.

    Raises:
        RequestError: the picture is too small, or too narrow to be seen in such a frame.
    """
    rows, columns = (side - side % multiple for side in picture.shape[:2])
    scale = min(height / rows, width / columns) if rows and columns else 0
    new_rows, new_columns = int(rows * scale), int(columns * scale)
    if not new_rows or not new_columns:
        raise RequestError(
            f"{name} has a picture of {picture.shape[1]}x{picture.shape[0]} pixels; each side must have at least "
            f"{multiple}, and in a video of {width}x{height} at least one is to be left of it"
        )
    levels = fitted(picture, rows, columns).astype(np.float32)
    frame = np.full((height, width, 3), 255, np.float32)
    top, left = (height - new_rows) // 2, (width - new_columns) // 2
    frame[top : top + new_rows, left : left + new_columns] = _bilinear(_bilinear(levels, new_rows, 0), new_columns, 1)
    return frame


def _bilinear(levels: NDArray[np.float32], count: int, axis: int) -> NDArray[np.float32]:
    """One axis resized as PyTorch's `interpolate` does, which reads two values for each new one, however far apart."""
    size = levels.shape[axis]
    places = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(size / count) - np.float32(0.5)
    places = np.maximum(places, 0)
    before = places.astype(np.int64)
    share = np.expand_dims(places - before.astype(np.float32), tuple(range(1, levels.ndim - axis)))
    one, other = levels.take(before, axis), levels.take(np.minimum(before + 1, size - 1), axis)
    mixed: NDArray[np.float32] = one * (1 - share) + other * share
    return mixed


def for_clip(picture: Pixels, *, name: str = "image") -> NDArray[np.float32]:
    """A picture as CLIP takes it, f32 `[3, 224, 224]`, bit for bit as the `CLIPImageProcessorPil` of Transformers.

    The shorter side becomes 224 pixels, and the middle of the longer one is kept.

    Raises:
        RequestError: it is too narrow for that.
    """
    from PIL import Image

    height, width, _ = picture.shape
    longer, shorter = max(height, width), min(height, width)
    if longer * CLIP_PIXELS**2 > shorter * MOST_PIXELS:
        most = MOST_PIXELS // CLIP_PIXELS**2
        raise RequestError(
            f"{name} has {width}x{height} pixels; this model takes pictures whose longer side is at most {most} times "
            "the shorter one. Cut it"
        )
    rows, columns = (int(CLIP_PIXELS * side / shorter) for side in (height, width))
    resized = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = ((side - CLIP_PIXELS) // 2 for side in (rows, columns))
    values = resized[top : top + CLIP_PIXELS, left : left + CLIP_PIXELS] * np.float64(1 / 255)
    normal = (values.astype(np.float32) - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def sized_for(
    picture_height: int, picture_width: int, budget_pixels: int, sizes: Mapping[str, range]
) -> tuple[int, int]:
    """Height and width of a video with the aspect of a picture, as the examples of Diffusers compute them.

    Each is rounded down to what the model allows, so a picture that is very narrow gets a wider video.

    Args:
        picture_height: of the picture, in pixels.
        picture_width: of the picture, in pixels.
        budget_pixels: at most so many has a frame of the video, unless the smallest video has more.
        sizes: what the model allows, by "height" and "width".
    """
    aspect = picture_height / picture_width
    height, width = round(math.sqrt(budget_pixels * aspect)), round(math.sqrt(budget_pixels / aspect))
    lowest, narrowest = sizes["height"][0], sizes["width"][0]
    if height < lowest:
        width = min(width, budget_pixels // lowest)
    if width < narrowest:
        height = min(height, budget_pixels // narrowest)
    return _allowed(height, sizes["height"]), _allowed(width, sizes["width"])


def _allowed(pixels: int, allowed: range) -> int:
    """The largest allowed number up to this one, or the least allowed."""
    return allowed[max(0, (min(pixels, allowed[-1]) - allowed.start) // allowed.step)]


def _of_array(array: NDArray[np.generic], name: str) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise RequestError(
            f"{name} must be an array uint8 [H, W, 3] with values from 0 to 255; got {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array, np.uint8)


def opened(path: str, name: str) -> BinaryIO:
    """The file, open; not one that would give bytes without end, or none before somebody writes.

    Raises:
        RequestError: there is no such file, or it cannot be read.
    """
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise RequestError(f"{name} is a folder: {shown_path(path)}; name one picture or video file")
        if not stat.S_ISREG(kind):
            raise RequestError(f"{name} is not a regular file: {shown_path(path)}; save it as a file first")
        return open(path, "rb")
    except FileNotFoundError:
        raise RequestError(
            f"{name} is not there: {shown_path(path)}; name a picture or video file on this machine. Nothing is "
            "fetched from an address: download it first"
        ) from None
    except OSError as error:
        raise RequestError(f"{name} is not readable: {shown_path(path)}: {error.strerror}") from error
    except ValueError as error:  # a zero byte
        raise RequestError(f"{name} is not a path: {shown_path(path)}: {error}") from None


def shown_path(path: str) -> str:
    """As errors show it."""
    return repr(path if len(path) <= 200 else f"{path[:200]}...")


def _read(file: BinaryIO, name: str, shown: str, beside: int) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and of odd metadata, which are judged here
            with Image.open(file, formats=_FORMATS) as image:
                refuse_large(image.width, image.height, name, shown, beside)
                return _seen(image, name)
    except RequestError:
        raise
    except UnidentifiedImageError:
        return _of_video(file, name, shown, beside)
    except MemoryError:
        raise RequestError(f"{name} does not fit into memory: {shown}; make it smaller first") from None
    except Image.DecompressionBombError:
        raise RequestError(f"{name} has more than {MOST_PIXELS} pixels: {shown}; make it smaller first") from None
    except Exception as error:  # of damaged files, the library's decoders raise anything
        raise RequestError(
            f"{name} is damaged, or of a kind that cannot be read: {shown}: {error or type(error).__name__}. Save it "
            "again as PNG or JPEG"
        ) from error


def refuse_large(width: int, height: int, name: str, shown: str, beside: int = 0) -> None:
    """
    Raises:
        RequestError: a picture or frame has more than `MOST_PIXELS`, with the pixels that are beside it.
    """
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"{name} has {width}x{height} pixels: {shown}; at most {MOST_PIXELS} are read. Make it smaller first"
        )
    if width * height + beside > MOST_PIXELS:
        raise RequestError(
            f"{name} may have {MOST_PIXELS} pixels in all pictures together; {width}x{height} more, of {shown}, are "
            "too many. Give fewer, or make them smaller first"
        )


def _seen(image: Image.Image, name: str) -> Picture:
    from PIL import Image, ImageOps

    notes = []
    kind = image.format
    if getattr(image, "is_animated", False) and kind != "MPO":  # whose other pictures are views of the same
        notes.append(f"{name} has several frames or pages; the first is used")
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode in _16_BIT or (turned.mode == "I" and kind in ("PNG", "PPM")):
        negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # which Pillow turns at 8 bits alone
        return Picture(_of_16_bits(turned, negative=negative), tuple(notes))
    if turned.mode in ("I", "F"):
        raise RequestError(
            f"{name} has pixels of 32 bits, of which nobody knows which value is white; save it with 8 or 16 bits"
        )
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            notes.append(f"{name} is transparent in parts, which become white; for another color, fill them before")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return Picture(np.array(turned.convert("RGB")), tuple(notes))


def _of_16_bits(image: Image.Image, *, negative: bool) -> Pixels:
    """Grey; Pillow itself takes the upper byte of colors, and clips grey."""
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    grey = 255 - grey if negative else grey
    grey[values == image.info.get("transparency", -1)] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _of_video(file: BinaryIO, name: str, shown: str, beside: int) -> Picture:
    file.seek(0)
    start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS:
        raise RequestError(f"{name} is a HEIF picture, which cannot be read: {shown}; save it as PNG or JPEG")
    if not start:
        raise RequestError(f"{name} is empty: {shown}; give a picture or video file")
    file.seek(0)
    try:
        frame = last_frame(file, lambda width, height: refuse_large(width, height, name, shown, beside))
    except VideoError as error:
        raise RequestError(
            f"{name} is not a picture or video that can be read: {shown}: {error}. Give a picture as {READABLE}, or a "
            "video such as MP4 or WebM"
        ) from error
    return Picture(frame)


def kind_of(value: object) -> str:
    """The type of a value that is none of those asked for, for errors."""
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
