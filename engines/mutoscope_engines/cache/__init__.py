"""Compiled engines on disk: by content, signed, and built once."""
