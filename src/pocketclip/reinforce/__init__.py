"""Reinforcing a dataset: captioners, teachers, and the job that runs them over shards of pairs."""
