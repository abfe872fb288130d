"""Links to phones and Macs: one module each, behind the protocol in `base`."""
