"""Reads and writes torch files and reads safetensors, without executing them."""
