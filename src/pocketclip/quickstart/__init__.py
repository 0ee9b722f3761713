"""`pocketclip quickstart`: the whole pipeline in minutes, without a network.

| module | holds |
|---|---|
| `pipeline` | the two workflows: drawn scenes, and the user's own pairs |
| `quickstart_run` | the output folder and the resumable steps |
| `scenes`, `drawing`, `captions` | scenes, their pixels, their texts |
| `listing` | the user's pairs before they are read: labels and split |
| `collection`, `own_pairs` | tables and evaluation sets on disk |
| `replay_rng` | random numbers that are equal on every machine |
| `report`, `templates/` | the HTML report |
"""
