"""What is learned from a stream: targets, mask, and which metrics."""
