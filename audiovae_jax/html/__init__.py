"""Self-contained HTML pages: documents, SVG drawings and spectrograms."""
