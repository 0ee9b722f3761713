"""The makers of the reference pages; `make_reference.py` runs them."""
