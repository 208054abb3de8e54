"""Figures: `compute(frame)` says what will be drawn, `draw(info)` only draws it."""
