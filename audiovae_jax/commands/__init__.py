"""The command line: commands, flags, and input and output files."""
