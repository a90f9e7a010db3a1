"""The interface to be awaited. ``_sync`` is made from these files by ``bindings/python/make_sync.py``."""
