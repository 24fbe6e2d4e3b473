"""Atomic files, buckets, checksums, and trees of arrays on disk."""
