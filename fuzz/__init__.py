"""Fuzzing of everything that reads a file somebody else may have written (SECURITY.md); `python -m fuzz.run --help`."""
