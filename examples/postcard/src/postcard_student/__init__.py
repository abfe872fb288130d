"""A small text-to-image transformer in plain PyTorch. It knows nothing of snapgen-deploy."""
