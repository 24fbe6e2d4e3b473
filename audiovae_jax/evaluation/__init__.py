"""Judges models and codecs on audio: metrics, tables with intervals, and a page to look at and listen to."""
