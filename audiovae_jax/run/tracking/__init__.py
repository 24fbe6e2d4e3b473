"""Recording a run (JSON Lines, TensorBoard, MLflow, wandb), and reading it back."""
