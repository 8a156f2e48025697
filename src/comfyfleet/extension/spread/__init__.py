"""One node's work as many small tasks on all devices: tiles, frames, VAEs."""
