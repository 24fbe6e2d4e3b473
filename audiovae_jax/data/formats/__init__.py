"""Audio formats as bytes: lengths, parts, damage, and files that are not audio."""
