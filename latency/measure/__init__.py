"""Measuring a bundle: sessions on this host and on devices behind a link."""
