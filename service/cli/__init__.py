"""The commands: their arguments, and a module for the run of each."""
