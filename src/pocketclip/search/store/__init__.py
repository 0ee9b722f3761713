"""A library's SQLite file: where it is, its tables, its one writer and its readers.

| module | holds |
|---|---|
| `location`, `file_systems` | the files of a library by its name; network file systems |
| `database` | connections, transactions, snapshots |
| `schema`, `connections` | tables, versions and migrations; how a connection is opened |
| `writer` | the lock of the one writer |
| `sqlite_errors` | SQLite's errors in words that say what to do |
| `origin` | a copy of the few rows without which a damaged library is lost |
"""
