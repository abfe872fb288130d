"""Settings for all tests: shared machines are slow at times, so no property test has a deadline."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
