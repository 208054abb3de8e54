"""The generator, compiled: what the modules of the same names above do, draw for draw, in arrays.

Same state, same document; a test holds the two together. Plain Python stays the reference, which says what is done
and why; here only how.
"""
