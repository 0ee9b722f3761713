"""The routes of a server, one module per protocol."""
