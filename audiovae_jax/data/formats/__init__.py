"""What the bytes of audio formats say that decoders do not: lengths, parts, and damage."""
