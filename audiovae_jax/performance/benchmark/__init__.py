"""Benchmarks: the step, the codec, data, compiling, memory and learning."""
