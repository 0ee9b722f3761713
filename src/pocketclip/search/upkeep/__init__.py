"""What keeps a library sound, and what removes from it.

| module | holds |
|---|---|
| `check` | what is wrong with a library |
| `repair`, `salvage` | a sound library from a damaged one; rows read from its pages |
| `move_root` | a root that is at another place now |
| `forget` | the only thing that deletes |
"""
