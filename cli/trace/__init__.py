"""`fastswitch trace`: one file a subcommand."""
