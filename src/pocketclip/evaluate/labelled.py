"""Top-1 accuracy on labelled photographs, as one function of an encoder.

measure = top1("pairs.csv", label_column="product", where={"split": "test"})
measure(encoder)                    # 61.2, in percent
export(model, "out", target="onnx", accuracy=measure)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pocketclip.errors import DataError
from pocketclip.evaluate.datasets.find import DataOptions, TaskData, own_task
from pocketclip.evaluate.stream import RunOptions
from pocketclip.evaluate.suite import evaluate, plan
from pocketclip.evaluate.tasks import Task
from pocketclip.types import Encoder


def labelled_set(data: str, options: DataOptions) -> tuple[Task, TaskData]:
    """Return a user's own set of labelled photographs, and its task.

    Args:
        data: a folder with one sub-folder per label, or a table as `pocketclip eval` takes it.
        options: how to read it.

    Raises:
        DataError: there are no labelled photographs.
    """
    planned = plan((own_task(data),), data, options)
    if not planned.ready:
        raise DataError(next(iter(planned.missing.values())))
    task, task_data = planned.ready[0]
    if task_data.kind != "classification":
        raise DataError(f"{data} has no labels, only captions: pass --label-column COLUMN")
    return task, task_data


def top1(
    data: str,
    *,
    label_column: str | None = None,
    where: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    templates: Sequence[str] = (),
) -> Callable[[Encoder], float]:
    """Return a function that computes an encoder's zero-shot top-1 on `data`, in percent.

    Args:
        data: a folder with one sub-folder per label, or a table as `pocketclip eval` takes it.
        label_column: the table's column of labels.
        where: column values; only rows with these values count.
        templates: prompts such as "a photo of {}."; by default the set's own.

    Raises:
        DataError: there are no labelled photographs. The returned function raises it if one of
            them cannot be read.
    """
    conditions = tuple(where.items()) if isinstance(where, Mapping) else tuple(where)
    options = DataOptions(label_column=label_column, where=conditions, templates=tuple(templates))
    task, task_data = labelled_set(data, options)

    def measure(encoder: Encoder) -> float:
        # No cache: variants of a model share its embedding space but not its embeddings.
        settings = RunOptions(batch_size=getattr(encoder, "batch_size", 64), cache=None)
        result, _ = evaluate(encoder, task, task_data, settings)
        return 100 * float(result.metrics["acc1"] or 0)

    return measure
