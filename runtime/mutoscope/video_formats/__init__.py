"""One file a kind of output. Each writes `T` frames to a name it is given, and knows nothing of temporary names.

A writer is `write(target, frames, plan, codec)`: it takes uint8 chunks `[n, H, W, 3]` one at a time. It may refuse what
its format cannot hold with an `OutputError`, before it takes the first; errors of the system and FFmpeg pass through.
"""
