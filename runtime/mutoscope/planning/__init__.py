"""From a request to a plan: sizes, memory, tiles, and what runs where."""
