"""Evaluation sets: found by the task's name and read one example at a time.

    for example in find(find_task("cifar10"), "s3://bucket/sets"): ...

| module | holds |
|---|---|
| `find` | where a task's set may lie, and which reader fits |
| `examples` | `Example`, `Puzzle`, `TaskData`, and the options for the user's own sets |
| `folders` | one folder per class |
| `tables`, `rows` | csv, tsv, jsonl and json tables; their rows |
| `webdataset` | tars in DataComp's layout |
"""
