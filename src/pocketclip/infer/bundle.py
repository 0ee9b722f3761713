"""Bundles: a folder with an exported model and all that is needed to use it.

    bundle.json    what it is: model, space, target, precision, inputs, outputs, verification
    image.*        the image tower
    text.*         the text tower
    tokenizer.json the tokenizer in the format of the `tokenizers` library

Every file's SHA-256 stands in `bundle.json` and is compared before the file is used.
"""

from __future__ import annotations
