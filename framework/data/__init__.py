"""What a task trains on: splits on disk or rendered, transforms, loaders."""
