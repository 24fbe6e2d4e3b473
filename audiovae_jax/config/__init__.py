"""Read and check configs, resolve dotted names, and build the objects of a run."""
