"""Metrics computed from models."""
