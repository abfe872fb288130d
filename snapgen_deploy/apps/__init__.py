"""Apps that draw with a bundle: written beside it, each held to its conformance.json; and a local server for the web's."""
