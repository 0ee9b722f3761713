"""ONNX graphs of the towers, from a configuration and named arrays; no torch.

    from pocketclip.graph.build import write_tower

    write_tower(weights, config, "image", Path("image.onnx"))

| module | holds |
|---|---|
| `build` | `write_tower`: one tower to one file |
| `features` | `write_features`: the feature maps of an image tower, for images of any size |
| `image`, `text` | the towers |
| `convolution`, `transformer`, `layers` | their blocks |
| `tower` | the weights as the builders read them |
| `preprocessing` | resize and crop of a photograph |
| `fuse` | structural re-parameterisation in float64 |
| `writer` | nodes and weights to a file |
| `proto` | ONNX files, by the `protobuf` package alone |
| `ports` | a tower's entry in `bundle.json` |
"""
