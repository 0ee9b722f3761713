"""A published model made better on one's own images, without losing what it knows.

| module | holds |
|---|---|
| `pipeline` | the workflow as one function, `finetune` |
| `presets` | how much is trained, and with which settings |
| `start` | the model to start from |
| `own_images`, `own_shards`, `tables` | the user's images, and the tables of paths made of them |
| `training`, `teaching` | stored views and the train recipe; teachers and captioners |
| `rates` | the learning rate, chosen by short trainings |
| `validation`, `details` | the scores, and what the report shows beside them |
| `finetune_run` | options, the output folder, the results so far |
| `interpolate` | weights between the start and the fine-tuned end, and the choice of a point |
| `retention` | how much of what the start knew a model has kept |
| `report`, `templates/` | the HTML report |
| `generic` | captions about anything, to distil and to measure with |
"""

from pocketclip.finetune.finetune_run import Options
from pocketclip.finetune.pipeline import finetune

__all__ = ["Options", "finetune"]
