"""Slow, literal twins of the papers' algorithms: the oracles that the fast engine is compared with.

Nothing here imports rankwise, and nothing here is clever: one statement per equation, so that a reader with
the paper open can check it line by line.
"""
