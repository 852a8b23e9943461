"""One file a command, one row each in `cli.COMMANDS`."""
