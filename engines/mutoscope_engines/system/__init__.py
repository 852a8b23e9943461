"""The machine and its operating system, alike on all of them."""
