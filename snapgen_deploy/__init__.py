"""From a trained elastic diffusion transformer to a verified, app-ready model bundle."""

__version__ = "0.1.0"
