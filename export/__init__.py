"""Export targets: one module per format, behind the protocol of `base`."""
