"""Mixed precision: calibration, sensitivities, palettes, allocation of bits, and tuning of the parameters that stay exact."""
