"""Audio for training: files read by window, a built-in generator, and the pipeline that feeds steps."""
