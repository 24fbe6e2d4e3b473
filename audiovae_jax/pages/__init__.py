"""HTML pages that need no other file and no server: their frame, curves and players."""
