"""HTML pages in one file: documents, SVG charts and pictures of sound."""
