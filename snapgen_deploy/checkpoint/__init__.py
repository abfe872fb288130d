"""Checkpoints: opening, checking, reading in parts, writing."""

from snapgen_deploy.checkpoint.expected import expected_shapes
from snapgen_deploy.checkpoint.header import Header, TensorInfo, read_header
from snapgen_deploy.checkpoint.keymap import KeyMap, load_key_map
from snapgen_deploy.checkpoint.opener import EMBEDDED, Checkpoint, Reading, embedded_path, open_checkpoint
from snapgen_deploy.checkpoint.place import CheckpointPlace
from snapgen_deploy.checkpoint.validation import structural_problems, validate, validate_values
from snapgen_deploy.checkpoint.writer import checkpoint_state, save_checkpoint, save_sharded, stream_sharded

__all__ = [
    "EMBEDDED", "Checkpoint", "CheckpointPlace", "Header", "KeyMap", "Reading", "TensorInfo", "checkpoint_state",
    "embedded_path",
    "expected_shapes", "load_key_map", "open_checkpoint", "read_header", "save_checkpoint", "save_sharded", "stream_sharded",
    "structural_problems", "validate", "validate_values",
]  # fmt: skip
