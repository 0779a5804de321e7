"""Pure pieces that decide ranks and freezing. They know tensors and steps; no layers, no methods, no files."""
