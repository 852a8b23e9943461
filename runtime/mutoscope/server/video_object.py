"""A job as clients see it: OpenAI's Video object, and our own fields beside it, which its clients keep or ignore."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .jobs import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, Job
from .live import Live

DAY_S = 86_400
_STATUS = {QUEUED: "queued", RUNNING: "in_progress", COMPLETED: "completed", FAILED: "failed", CANCELLED: "failed"}


def video_object(job: Job, live: Live | None, ahead: int | None, keep_days: float | None) -> dict[str, Any]:
    """As JSON has it.

    Args:
        live: how far it is, where it runs.
        ahead: how many videos are made before it, where it waits.
        keep_days: after which it will be deleted.
    """
    ended = job.finished_at
    kept_until = None if ended is None or keep_days is None else int(ended + keep_days * DAY_S)
    receipt = job.receipt or {}
    how_far = live.to_dict() if live is not None else {"progress": 100 if job.state == COMPLETED else 0}
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "created_at": int(job.created_at),
        "completed_at": int(ended) if ended is not None and job.state == COMPLETED else None,
        "expires_at": kept_until,
        "status": _STATUS[job.state],
        "prompt": job.request["prompt"],
        "seconds": seconds_of(job),
        "size": f"{job.width}x{job.height}",
        "remixed_from_video_id": job.remixed_from,
        "error": job.error,
        # our own
        "state": job.state,
        "seed": job.request["seed"],
        "num_frames": job.num_frames,
        "request": job.request,
        "queue_position": ahead,
        "attempts": job.attempts,
        "finished_at": job.finished_at,
        "bytes": receipt.get("bytes"),
        "sha256": receipt.get("sha256"),
        "content_sha256": receipt.get("content_sha256"),
        "times_s": receipt.get("times_s"),
        "layers": receipt.get("layers"),
        **how_far,
    }


def seconds_of(job: Job) -> str:
    """How long its video plays, as text such as "2.125"."""
    return f"{float(job.num_frames / Fraction(job.fps)):g}"
