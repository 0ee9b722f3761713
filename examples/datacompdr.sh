#!/bin/sh
# Join and train from a published DataCompDR set, by its name on the Hugging Face hub.
#
#     sh examples/datacompdr.sh IMAGES OUT [SETTINGS OF TRAIN ...]
#     sh examples/datacompdr.sh "datacomp/{00000000..00000003}.tar" dr12m --device cuda
#
# The set holds no images: captions, augmentations and embeddings, by the uid of DataComp. IMAGES are
# your own shards of DataComp-12M (uid.jpg, uid.txt), as img2dataset writes them. With IMAGES=--fetch
# they are fetched from their URLs; many are gone by now. Only what is asked for is downloaded: SHARDS
# names the published shards. A shard of apple/DataCompDR-12M holds 12,500 samples and takes several
# GB; the bf16 set takes half. The joined shards hold the embeddings in int8, a quarter of float32, which
# costs a mean KL divergence of 0.0004 nats (docs/internals/performance.md); DTYPE chooses another.
set -eu
IMAGES=$1 OUT=$2
shift 2
SET=${SET:-hf://datasets/apple/DataCompDR-12M}
SHARDS=${SHARDS:-{00000000..00000003\}}
RECIPE=${RECIPE:-mobileclip-b-datacompdr12m}
DTYPE=${DTYPE:-int8}

if [ "$IMAGES" = --fetch ]; then
  pocketclip join "$SET/$SHARDS.tar" --fetch --out "$OUT/joined" --dtype "$DTYPE" || [ $? -eq 1 ]
else
  # Exit code 1: some samples lack an image, or an image its sample. OUT/joined/unmatched.jsonl
  # names them.
  pocketclip join "$SET/$SHARDS.tar" "$IMAGES" --out "$OUT/joined" --dtype "$DTYPE" || [ $? -eq 1 ]
fi
pocketclip audit "$OUT/joined"
pocketclip train "$RECIPE" --data "$OUT/joined" --out "$OUT/run" "$@"
