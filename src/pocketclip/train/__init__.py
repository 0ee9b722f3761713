"""Training: losses, batches from reinforced shards, one loop, and the published recipes."""
