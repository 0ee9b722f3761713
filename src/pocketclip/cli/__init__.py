"""The command line: one thin file per verb; heavy imports stay inside the functions."""
