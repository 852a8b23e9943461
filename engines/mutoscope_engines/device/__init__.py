"""Memory, streams and captured graphs of a GPU."""
