"""The options that several verbs share: their help texts, and how they become settings.

Each alias is a parameter's type: `offline: Offline = False` declares `--offline`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.errors import ConfigError, PocketclipError

if TYPE_CHECKING:
    from pocketclip.cluster import Cluster
    from pocketclip.pairs import PairOptions
    from pocketclip.types import Encoder

# A model: what it is, and what runs it.

MODEL_HELP = (
    "A model name (see `pocketclip models`), training run, checkpoint, bundle, weight file, "
    "NAME=FILE, hub id OWNER/NAME, or random:NAME. A path that exists comes before a name: see "
    "docs/how-to/naming-models.md."
)
DEFAULT_MODEL = "mobileclip2-s0"

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
ModelName = Annotated[
    str | None,
    typer.Option(
        help="The name of the model in a weight file that does not store one; NAME=FILE does the "
        "same."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="A branch, tag or commit of a hub repository; OWNER/NAME@REVISION does the same."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use only files in the local cache; download nothing.")
]
AcceptLicence = Annotated[
    bool,
    typer.Option(
        "--accept-licence",
        "--accept-license",
        help="Say that the licence of the weights allows to hand them on. It is asked for where a "
        "known licence may forbid that, as Apple's does beyond research.",
    ),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PHOTOS",
        help="Photographs to calibrate int8 with, like those to be used later: files, folders "
        "or quoted patterns; may be repeated. At least 16; 100 to 500 are better.",
    ),
]
TrainSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="FIELD=VALUE",
        help="A field of the train recipe, such as optimizer.lr=1e-4; may be repeated.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(help="The runtime of a bundle: onnxruntime, openvino, or auto for the fastest."),
]
Device = Annotated[
    str,
    typer.Option(
        help="The device of a model in torch: cpu, cuda, cuda:1, mps, or auto for a GPU if there "
        "is one."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="The number of CPU threads.  [default: all cores]"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="The number of photographs per batch.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed of all random choices.")]
DecodeWorkers = Annotated[
    int | None,
    typer.Option(
        min=0, help="The number of processes that decode images.  [default: by the machine]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LibraryOption = Annotated[
    str | None,
    typer.Option(
        "--library",
        "-l",
        metavar="NAME|FILE",
        help="The library: a name, or a path that ends in .sqlite.  [default: photos]",
    ),
]

# Labelled photographs, to measure an accuracy.

Labelled = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Labelled photographs to measure the top-1 accuracy on: a folder with one folder per "
        "label, or a table as `pocketclip eval` takes it.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column of a table with the labels."),
]
LabelledWhere = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Use only the rows of a table with this value, such as split=test; may be repeated.",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PROMPT",
        help='A prompt such as "a photo of {}."; may be repeated: their embeddings are averaged.',
    ),
]

# Raw pairs.

PAIRS_HELP = (
    "Image-text pairs: tables (csv, tsv, jsonl, parquet), folders, tars, tfrecords, quoted "
    "patterns, or info.json lists; local or in an object store."
)

ImageColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The column with image paths, URLs or bytes.  [default: the first of the usual names]",
    ),
]
CaptionColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="A column with captions; may be repeated.  [default: the first of the usual names]",
    ),
]
UidColumn = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column with unique names.  [default: the row number]"),
]
PairsWhere = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE", help="Use only the rows with this value; may be repeated."
    ),
]
Quotes = Annotated[
    bool,
    typer.Option(
        "--quotes/--no-quotes", help="Whether double quotes in a csv or tsv enclose a field."
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="The character between the columns of a csv or tsv, or `tab`.  [default: recognised]"
    ),
]
CaptionsFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Captions that the pairs have besides their own, such as an earlier run's: a key or "
        "column such as syn_text_NAME, a quoted pattern such as 'syn_text_*', or NAME=COLUMN, "
        "which keeps a column as syn_text_NAME; may be repeated.",
    ),
]
AllowPrivate = Annotated[
    bool,
    typer.Option(
        "--allow-private",
        help="Also fetch images from private addresses: this computer and the local network.",
    ),
]
ShardSize = Annotated[
    int, typer.Option(min=1, help="The number of pairs per shard, for tables and folders.")
]

# A Ray cluster.

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run on a Ray cluster: auto, ray://HOST:PORT, or local (also without ADDRESS).",
    ),
]
MinActors = Annotated[int, typer.Option(help="With --ray: the number of actors to start with.")]
MaxActors = Annotated[
    int | None,
    typer.Option(help="With --ray: the largest number of actors.  [default: --min-actors]"),
]
CpusPerActor = Annotated[
    float, typer.Option(help="With --ray: the number of CPUs that each actor reserves.")
]
GpusPerActor = Annotated[
    float, typer.Option(help="With --ray: the number of GPUs that each actor reserves.")
]


def ray_cluster(
    address: str, min_actors: int, max_actors: int | None, cpus: float, gpus: float
) -> Cluster:
    """Return the cluster that the options of a verb name.

    Raises:
        ConfigError: a number is out of range.
    """
    from pocketclip.cluster import Cluster

    return Cluster(
        address=None if address == "local" else address,
        min_actors=min_actors,
        max_actors=max(min_actors, max_actors or min_actors),
        cpus=cpus,
        gpus=gpus,
    )


def pair_options(
    image_column: str | None,
    caption_column: list[str] | None,
    uid_column: str | None,
    where: list[str] | None,
    shard_size: int,
    quotes: bool = True,
    delimiter: str | None = None,
    allow_private: bool = False,
    captions_from: list[str] | None = None,
) -> PairOptions:
    """Return the options of `pocketclip.pairs.open_pairs`.

    Raises:
        ConfigError: a condition is not COLUMN=VALUE, or a delimiter is not a single character.
    """
    from pocketclip.pairs import PairOptions
    from pocketclip.storage.http import FetchOptions

    conditions = {}
    for text in where or []:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise ConfigError(f"--where {text!r}: write COLUMN=VALUE")
        conditions[column] = value
    return PairOptions(
        image_column=image_column,
        caption_columns=tuple(caption_column or ()),
        uid_column=uid_column,
        where=conditions,
        shard_size=shard_size,
        quotes=quotes,
        delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        fetch=FetchOptions(allow_private=allow_private),
        captions_from=tuple(captions_from or ()),
    )


def label_conditions(where: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return `COLUMN=VALUE` texts as pairs.

    Raises:
        PocketclipError: a text is not COLUMN=VALUE.
    """
    pairs = [text.partition("=") for text in where]
    wrong = [text for text, (column, equals, _) in zip(where, pairs, strict=True)
             if not column or not equals]  # fmt: skip
    if wrong:
        raise PocketclipError(f"--where {wrong[0]!r} is not COLUMN=VALUE")
    return tuple((column.strip(), value.strip()) for column, _, value in pairs)


def labelled_accuracy(
    data: str | None, label_column: str | None, where: Sequence[str], templates: Sequence[str]
) -> Callable[[Encoder], float] | None:
    """Return `pocketclip.evaluate.top1` of `--labelled` and its companions; None without it.

    Raises:
        PocketclipError: there are no labelled photographs, `where` is not COLUMN=VALUE, or a
            companion was passed without `--labelled`.
    """
    if data is None:
        if label_column or where or templates:
            raise PocketclipError("--label-column, --where and --template go with --labelled DATA")
        return None
    from pocketclip.evaluate import top1

    conditions = label_conditions(where)
    return top1(data, label_column=label_column, where=conditions, templates=templates)


def labelled_arguments(
    data: str | None, label_column: str | None, where: Sequence[str], templates: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of `labelled_accuracy` for another process, in JSON."""
    return {
        "data": data,
        "label_column": label_column,
        "where": list(where),
        "templates": list(templates),
    }


def check_output_file(
    option: str,
    path: Path | None,
    suffixes: Sequence[str],
    *,
    creates_folder: bool = False,
    source: str | None = None,
) -> None:
    """Check before the work that a file can be written after it.

    Args:
        option: the option that names the file, for messages.
        path: the file; None is fine.
        suffixes: the endings that it may have, lower case.
        creates_folder: a missing folder is fine, because the verb creates it.
        source: the file that is read; it is not overwritten, under no name that it has.

    Raises:
        PocketclipError: another ending, a missing folder, no permission to write, or the source.
    """
    from pocketclip.storage.local import check_writable

    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise PocketclipError(f"{option} {path}: give a file that ends in {' or '.join(suffixes)}")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise PocketclipError(f"{option} {path} is the input itself: give another file")
    folder = path.absolute().parent
    if creates_folder and not folder.exists():
        return
    if not folder.is_dir():
        raise PocketclipError(f"{option} {path}: there is no folder {folder}")
    check_writable(path)
