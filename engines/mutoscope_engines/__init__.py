"""Graph in, session out. Knows backends and devices. Knows nothing of prompts, schedules or videos."""
