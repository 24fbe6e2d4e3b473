"""Measurements: the step, the codec, data, compiling and memory, alone or beside another system."""
