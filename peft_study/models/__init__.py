"""Bases, adapters and probes."""
