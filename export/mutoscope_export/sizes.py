"""The sizes of videos that a checkpoint's networks take. Knows their geometry. Knows nothing of who asks."""

from mutoscope.bundle.bundle import Geometry


def allowed_sizes(geometry: Geometry) -> dict[str, range]:
    """For `height`, `width` and `num_frames`, by the names of the request."""
    frames, rows, columns = geometry.patch_size
    spatial, temporal = geometry.vae_scale_factor_spatial, geometry.vae_scale_factor_temporal
    steps = {
        "height": (spatial * rows, spatial * rows),
        "width": (spatial * columns, spatial * columns),
        "num_frames": (temporal * (frames - 1) + 1, temporal * frames),
    }
    return {name: range(first, first + step * geometry.max_patches, step) for name, (first, step) in steps.items()}
