"""What `tool/bench.py` measures: a module for each subcommand."""
