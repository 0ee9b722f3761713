"""Search in one's own photographs, without torch.

    with Library.open(create=True) as library:
        library.index(["~/Pictures"])
        library.search("red car in the snow")

| module | holds |
|---|---|
| `library` | `Library`: everything below in one object |
| `store/` | the SQLite file, its one writer and its readers |
| `indexing/` | from folders of photographs to vectors |
| `vectors/` | exact search in the vectors; their export |
| `query`, `filters`, `folders`, `arguments` | what is searched for, and where |
| `searching`, `ranking`, `similar`, `background` | a search; its hits; whether anything fits |
| `newest`, `overview` | all photographs by time; what a library has |
| `photo_file` | an indexed photograph, opened for somebody else |
| `thumbnails`, `thumbnail_image`, `thumbnail_store` | pictures of the hits |
| `contact_sheet` | a page of hits |
| `duplicates/` | photographs that are there twice |
| `upkeep/` | check, repair, forget |
| `model`, `records` | the model of a library; what the functions give back |
"""

from pocketclip.errors import LibraryError
from pocketclip.search.library import Library
from pocketclip.search.records import Hit, IndexReport, PhotoFacts, SearchResult

__all__ = ["Hit", "IndexReport", "Library", "LibraryError", "PhotoFacts", "SearchResult"]
