"""What Prometheus reads. Counted anew at each reading, from the table and the worker."""

from __future__ import annotations

import psutil
from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from .service import Service

__all__ = ["CONTENT_TYPE", "exposition"]


def exposition(service: Service) -> bytes:
    """All metrics, in Prometheus' text format."""
    registry = CollectorRegistry()
    jobs = Gauge("mutoscope_jobs", "Videos that are kept, by state.", ["state"], registry=registry)
    for state, count in service.table.counts().items():
        jobs.labels(state).set(count)
    made = Counter("mutoscope_videos_made", "Videos finished since the server started.", registry=registry)
    made.inc(service.made)
    last = Gauge("mutoscope_last_video_seconds", "How long the newest video took.", registry=registry)
    last.set(service.last_video_s or 0)
    progress = Gauge("mutoscope_running_progress", "Percent of the running videos that is done.", registry=registry)
    lives = service.lives()
    progress.set(sum(live.progress for live in lives) / len(lives) if lives else 0)
    limit = Gauge("mutoscope_queue_limit", "Videos that may wait or run at the same time.", registry=registry)
    limit.set(service.options.queue)
    memory = Gauge("mutoscope_resident_memory_bytes", "Memory that the server holds.", registry=registry)
    memory.set(psutil.Process().memory_info().rss)
    return generate_latest(registry)
