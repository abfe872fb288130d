"""Measures a bundle, on this host and on devices behind a link."""
