"""Measures latency: what is measured, how, and what comes of it. Importing it imports nothing else of it."""
