"""Noise, noise levels, and the solvers as matrices."""
