"""Bundles on disk: reading, schema, picture sizes, test vectors, preview, and drawing from one."""
