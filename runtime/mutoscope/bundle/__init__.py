"""The bundle: what its manifest says, and whether its files are what the manifest says."""
