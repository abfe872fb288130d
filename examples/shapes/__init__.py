"""The embedded checkpoint: procedural pictures of coloured shapes, their training and their scoring."""
