"""Evaluation of models and codecs: metrics, tables with intervals, a report."""
