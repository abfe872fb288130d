"""Measurements in other tools' formats, and what CI prints."""
