"""Surveys of a data set before a run: statistics, unusable files, reading speed."""
