"""Audio data: files (`audio`), data sets (`sets`), batches of crops (`feeding`) and statistics (`survey`)."""
