"""Training loops and their pure parts."""
