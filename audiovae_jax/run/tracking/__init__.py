"""Where a run is recorded: JSON Lines always, TensorBoard, MLflow; and what is read of it again."""
