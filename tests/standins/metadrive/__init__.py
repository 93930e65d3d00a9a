"""Stands in for MetaDrive where it is not installed: what DSRL uses of it, with the same traps.

Environments of old gym whose step() returns four values; seeds are numbers of scenarios; one engine per process.
"""
