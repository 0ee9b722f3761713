"""From folders of photographs to vectors in a library.

| module | holds |
|---|---|
| `run` | one run of indexing |
| `roots`, `rules`, `walk`, `scan` | folders, what is left out of them, their files, what changed |
| `reading`, `recording` | files read ahead and decoded once; batches committed |
| `photo_facts`, `perceptual_hash` | what the header says; what the photograph looks like |
| `status`, `watch`, `interrupts` | what a run would do; runs at changes; how a run ends |
"""
