"""Embeddings of many images: parquet files of vectors, on this machine or on a Ray cluster.

    from pocketclip.embed.job import Settings, run
    from pocketclip.pairs import PairOptions
    from pocketclip.pairs.photographs import open_image_shards

    shards, _ = open_image_shards(["s3://bucket/photos"], PairOptions(shard_size=10_000))
    run(shards, Settings(model="mobileclip2-s0"), "s3://bucket/vectors")

| module | holds |
|---|---|
| `job` | the job: each shard of images becomes one file |
| `vector_files` | the files: names, columns, facts; which ones are finished |

Nothing here imports torch: a bundle needs none.
"""
