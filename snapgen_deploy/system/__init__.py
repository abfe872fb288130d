"""What everything else stands on: files, documents, child processes, host memory, progress, quantiles."""
