"""Files that are whole or not there, checksums, and trees of arrays on disk."""
