"""Search in one's own photographs, without torch.

    with Library.open(create=True) as library:
        library.index(["~/Pictures"])
        library.search("red car in the snow")

| module | holds |
|---|---|
| `library` | `Library`: everything below in one object |
| `location`, `database` | the file, its one writer and its readers |
| `matrix`, `engines`, `kernels` | the vectors as searching reads them, and exact search in them |
| `vector_export` | files of vectors for other programs |
| `duplicates`, `near_duplicates`, `bursts` | photographs that are there several times |
| `photo_facts`, `perceptual_hash` | what a header says, and what a photograph looks like |
| `records`, `duplicate_records` | what they give back |
"""

from pocketclip.errors import LibraryError
from pocketclip.search.library import Library
from pocketclip.search.records import Hit, IndexReport, PhotoFacts, SearchResult

__all__ = ["Hit", "IndexReport", "Library", "LibraryError", "PhotoFacts", "SearchResult"]
