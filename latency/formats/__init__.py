"""Measurements and comparisons in the formats of other tools and of CI."""
