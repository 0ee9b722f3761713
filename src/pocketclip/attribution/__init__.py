"""Where in a photograph a model finds a text, as numbers and as a picture.

| module | holds |
|---|---|
| `explain` | `explain`: a photograph and texts to an `Explanation` |
| `heat` | the map of a text: gradients times activations of a feature map (torch) |
| `picture` | the photograph with its maps, drawn |
"""
