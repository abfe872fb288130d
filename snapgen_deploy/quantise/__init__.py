"""Fewer bits a weight: calibration, sensitivities, palettes, allocation of bits, and tuning of what stays exact."""
