"""A page to listen with: its models, what it computes, and the server that keeps everything else out of reach."""
