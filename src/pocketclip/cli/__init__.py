"""The command line: one thin file per verb; heavy imports stay inside the functions.

| module | holds |
|---|---|
| `main` | the entry point, the list of verbs, exit codes |
| `quickstart` `models` `classify` `embed` `reinforce` `join` `audit` `show` `train` `eval` `compare` `export` `bench` | one verb each: its options, help and printed text |
| `_options` | options that several verbs share |
| `_inputs` | photographs, text files and models from arguments |
| `_progress` | progress on standard error |
| `output` | everything that is printed, safely |
| `_bench_worker` | the process in which `bench` measures one model |
"""  # noqa: E501
