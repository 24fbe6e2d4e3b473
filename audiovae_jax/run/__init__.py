"""A whole training run: the loop, what is seen of it, where it begins, and what compiling takes."""
