"""Rows, manifests, atomic writes and the cache of files."""
