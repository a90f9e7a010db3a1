# Made from _async by make_sync.py; change the original.
"""The interface that blocks."""
