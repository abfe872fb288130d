"""The export job: from a plan to a published bundle."""
