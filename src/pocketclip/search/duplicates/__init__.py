"""Photographs that are there twice: equal files, copies of one shot, bursts; nothing is deleted.

| module | holds |
|---|---|
| `find` | `find_duplicates`, and `records` what it returns |
| `table`, `files`, `candidates` | the rows; files that are there; what may be compared |
| `close_hashes`, `near`, `same_picture` | hashes that differ little; groups; equal pixels |
| `bursts` | shots within seconds |
| `sheet` | the page |
"""
