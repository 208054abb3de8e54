"""Parameter-efficient fine-tuning study harness: error correction against error detection."""

__version__ = "0.1.0"
