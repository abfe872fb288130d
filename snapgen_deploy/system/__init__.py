"""The machine below: files, child processes, host memory, progress."""
