"""One step: its state, optimizer, and the mesh of devices that it is mapped over."""
