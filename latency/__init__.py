"""Latency: measured (`bench`), estimated (`estimate`), compared (`compare`) and reported (`report`).

stats      the statistics, with their sources              results    the record of a measurement, as plain data
measure    measuring on this machine and on devices        links      phones and Macs behind one small protocol
estimate   costs of a graph, and the time they will take   compare    two bundles, interleaved, and the verdict
formats    formats of other tools, and output for CI
"""
