"""Files: model directories, manifests, families, checkpoints, atomic writes."""
