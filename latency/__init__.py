"""Latency: measured (`bench`), estimated (`estimate`), guarded (`compare`) and reported (`report`).

stats      the statistics, with their sources               results    what a measurement leaves behind, as plain data
host       measuring on this host                           links      phones and Macs behind one small protocol
cost       what a graph costs; estimate  what it will take   compare    two bundles, interleaved, and the verdict
"""
