"""Feeding: crops by record number, and the pipeline that batches them."""
