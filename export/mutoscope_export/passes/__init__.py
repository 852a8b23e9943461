"""Changes to a finished graph: one pass a file, each returns whether it changed anything."""
