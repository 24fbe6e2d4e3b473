"""Feeding: crops by number, and the pipeline that brings them to the step."""
