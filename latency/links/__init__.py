"""Devices at the end of a cable, and Macs: one module each behind the protocol in `base`."""
