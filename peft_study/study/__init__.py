"""Trials and sweeps."""
