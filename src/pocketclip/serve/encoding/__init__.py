"""The model behind a server: queues, workers, and what routes make of embeddings."""
