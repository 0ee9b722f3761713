"""Raw image-text pairs, from tables, folders, webdataset tars and tfrecords.

    options = PairOptions(caption_columns=("alt_text",), where={"split": "train"})
    for shard in open_pairs("pairs.csv", options):
        for pair in shard:  # Pair | Bad
            ...

Every input is opened as shards: small picklable descriptions that any process can iterate. Images
are not decoded here. A pair that cannot be used is yielded as `Bad`; a problem of the whole input
is an error.
"""

from pocketclip.pairs.base import PairOptions, PairShard
from pocketclip.pairs.opening import open_pairs

__all__ = ["PairOptions", "PairShard", "open_pairs"]
