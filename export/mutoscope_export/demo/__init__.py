"""The built-in demonstration model: its grammar, its renderer, its two trainings, one command that makes it all."""
