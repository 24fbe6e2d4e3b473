"""Benchmarks: the step, the codec, data, compiling and memory."""
