"""An interactive listening page: models, computations and a restricted server."""
