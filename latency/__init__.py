"""Latency: measuring and comparing; empty until there is something that measures."""
