"""Engines for GPUs from a bundle: which, at what sizes, within what memory."""
