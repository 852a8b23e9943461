"""Networks in eight bits: what is measured, what is decided, how well it does."""
