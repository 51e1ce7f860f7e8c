"""The command: one file each. A command imports what it needs when it runs, so that `--help` is quick."""
