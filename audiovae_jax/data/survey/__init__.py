"""Looking at a data set before a costly run: what it is like, what training would skip, how fast it is read."""
