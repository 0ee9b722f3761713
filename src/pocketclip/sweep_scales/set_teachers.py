"""The models that made a reinforced set, found by the names in its index and checked.

for stored, teacher in load_set_teachers(index, "dr", ["student=runs/student"]):
    ...                                # one teacher in memory at a time
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pocketclip import shards, zoo
from pocketclip.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    PocketclipError,
    count_of,
)
from pocketclip.reinforce import specs
from pocketclip.reinforce.own_models import OwnTeacher
from pocketclip.reinforce.teachers import Teacher, load_teacher


def read_set(folder: str) -> shards.Index:
    """Return the index of a reinforced set, which names its teachers.

    Raises:
        DataError: there is none, it is damaged, or it names no teacher.
    """
    index = shards.describe(folder)
    if index is None:
        raise DataError(
            f"{folder} has neither index.json nor config.json, so its teachers are not known: give "
            "a folder of reinforced shards"
        )
    if not index.teachers:
        raise DataError(f"{folder}: its index names no teacher")
    return index


def assign(index: shards.Index, folder: str, given: Sequence[str]) -> list[str]:
    """Return the MODEL of each teacher of a set, in the set's order.

    Args:
        index: of the set.
        folder: of the set, for messages.
        given: MODEL or LABEL=MODEL; a label, or the name that a MODEL has anyway, is that of a
            teacher in the index. If none fits, they are the set's teachers in order. A teacher
            that is not given is looked up by its name in the index.

    Raises:
        ConfigError: one fits none, or two the same.
    """
    names = [str(teacher.get("name") or "") for teacher in index.teachers]
    labels = [specs.parse(text).label for text in given]
    if given and not set(labels) & set(names):
        if len(given) == len(names):
            return list(given)
        raise ConfigError(
            f"{folder} has {count_of(len(names), 'teacher')} ({_list(names)}), and --teacher was "
            f"given for {_list(labels)}: write --teacher {names[0] or 'NAME'}=MODEL"
        )
    for label in labels:
        if label not in names:
            raise ConfigError(f"{folder} has no teacher {label!r}; its teachers are {_list(names)}")
        if labels.count(label) > 1:
            raise ConfigError(f"--teacher {label} is given twice")
    if len(given) and len(set(names)) < len(names) and len(given) < len(names):
        raise ConfigError(f"{folder} has two teachers of one name ({_list(names)}): give all")
    by_label = dict(zip(labels, given, strict=True))
    return [by_label.get(name) or zoo.name_of_open_clip(name) or name for name in names]


def _list(names: Sequence[str]) -> str:
    return ", ".join(name or "one without a name" for name in names)


def load_set_teachers(
    index: shards.Index,
    folder: str,
    given: Sequence[str] = (),
    *,
    device: str = "auto",
    offline: bool = False,
) -> Iterator[tuple[dict[str, Any], str, Teacher | OwnTeacher]]:
    """Yield each teacher's entry in the index, its MODEL, and the model, loaded in its turn.

    Args:
        index: of the set.
        folder: of the set, for messages.
        given: see `assign`.
        device: as `load_teacher`.
        offline: as `load_teacher`.

    Raises:
        ConfigError: as `assign`; or a model is not the one that made the set.
        PocketclipError: a model cannot be found or loaded.
    """
    models = assign(index, folder, given)
    for stored, model in zip(index.teachers, models, strict=True):
        name = str(stored.get("name") or "")
        if not model:
            raise ConfigError(
                f"{folder}: its index does not name a teacher: give all with --teacher, in order"
            )
        try:
            teacher = load_teacher(model, device=device, offline=offline)
        except MissingDependencyError:
            raise
        except PocketclipError as error:
            if model in given:
                raise
            raise ConfigError(
                f"the teacher {name!r} of {folder} was not found by its name: give it as --teacher "
                f"{name}=MODEL ({error})"
            ) from error
        space, width = stored.get("space_id"), stored.get("embed_dim")
        if space and space != teacher.space_id:
            raise ConfigError(
                f"{model} is not the teacher {name!r} that made {folder}: its embedding space is "
                f"{teacher.space_id}, and the set's is {space}; give the model as --teacher "
                f"{name}=MODEL"
            )
        if width and width != teacher.embed_dim:
            raise ConfigError(
                f"{model} is not the teacher {name!r} that made {folder}: its embeddings have "
                f"{teacher.embed_dim} values, and the set's {width}"
            )
        yield stored, model, teacher
