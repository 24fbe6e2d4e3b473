"""Audio signals: reading, streaming and writing files, loudness, synthesis."""
