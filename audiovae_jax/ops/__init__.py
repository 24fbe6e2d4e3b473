"""Arithmetic on arrays: convolutions in the forms that compile well, the Snake, STFTs and mel filters."""
