"""What `tool/dev/bench.py` measures: a module for each subcommand."""
