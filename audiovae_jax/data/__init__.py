"""Audio data: files, data sets, batches of crops, and statistics."""
