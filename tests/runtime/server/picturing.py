"""A bundle whose model takes a first and a last picture, for a fake backend, and pictures for it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import TOKENIZER, Bundle, write_manifest
from mutoscope.bundle.conditionings import ImageConditioning
from mutoscope.bundle.manifest import GraphTensor, Manifest
from PIL import Image

from tests.bundles import graphs, interfaces, onnx_file, tensors
from tests.runtime.conftest import MANIFEST

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
OTHER = 255 - PIXELS


def bundle_with_pictures(root: Path, *, required: bool = False) -> Bundle:
    """A bundle that may be given both pictures, or must be given the first."""
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    frames = GraphTensor(name="frames", dtype="float32", shape=(1, "8*h", "8*w", 3))
    latent = (4, 1, "h", "w")
    ends["denoiser"] = (inputs + tensors(seen=latent, given=("F",), seen_last=latent, given_last=("F",)), outputs)
    ends["vae_encoder_first"] = ((frames,), tensors(condition=latent))
    images = [
        ImageConditioning(
            name=name,
            role="vae_encoder_first",
            feeds={"condition": f"seen{end}"},
            given=f"given{end}",
            required=required and not end,
        )
        for name, end in (("image", ""), ("last_image", "_last"))
    ]
    manifest = msgspec.structs.replace(
        MANIFEST, conditionings=(*MANIFEST.conditionings, *images), graphs=graphs(ends), demonstration=None
    )
    return written(root, manifest)


def written(root: Path, manifest: Manifest) -> Bundle:
    """A bundle whose graphs declare what they take and give."""
    root.mkdir()
    shutil.copy(bundle_path() / TOKENIZER, root)
    for graph in manifest.all_graphs:
        (root / graph.file).parent.mkdir(exist_ok=True)
        (root / graph.file).write_bytes(onnx_file(graph))
    return write_manifest(root, manifest)


def saved(pixels: Any = PIXELS, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def mp4(frames: Any) -> bytes:
    """An MP4 that a browser can play."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
