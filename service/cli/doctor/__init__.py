"""The doctor command: a module for each subject that it checks."""
