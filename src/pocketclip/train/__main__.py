"""`torchrun --nproc-per-node 8 -m pocketclip.train RECIPE ...`: the verb `pocketclip train`."""

import sys

from pocketclip.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
