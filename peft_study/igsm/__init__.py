"""The synthetic world: problems, solutions, mistakes, text and streams."""
