"""What every other room uses: files, documents, child processes, host memory, progress, quantiles."""
