"""Export targets: one package per format, behind the protocol in `base`."""
