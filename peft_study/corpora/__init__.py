"""Real problems and their solutions: loaded, graded, and turned into documents that skills are learned from."""
