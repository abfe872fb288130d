"""Two bundles, interleaved in one process per round, and the verdict on their difference."""
