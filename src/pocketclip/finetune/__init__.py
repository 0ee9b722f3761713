"""A published model made better on one's own images, without losing what it knows.

| module | holds |
|---|---|
| `interpolate` | weights between the start and the fine-tuned end, and the choice of a point |
| `retention` | how much of what the start knew a model has kept |
| `report`, `templates/` | the HTML report |
| `generic` | captions about anything, to distil and to measure with |
"""
