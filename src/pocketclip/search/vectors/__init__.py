"""The vectors of a library for searching: a derived file, and exact search in it.

| module | holds |
|---|---|
| `matrix` | `open_matrix`: the vectors as they are now |
| `file`, `rows` | the derived file; the vectors in SQLite |
| `kernels`, `engines` | products by numpy or numkong; the best vectors, in one order from both |
| `export` | embeddings for other programs |
"""
