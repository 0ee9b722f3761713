"""Export: a trained model to a bundle that runs without torch, checked against the original."""
