"""PyTorch's file formats and safetensors, read and written without torch; nothing in a file is executed."""
