"""Data sets: what there is to train on, under a folder, in a list, or in the layout of a published set."""
