"""The running server: sockets, connections, signals, and opening the model."""
