"""Export: a model to a bundle for a runtime, refused unless it reproduces the model.

| module | holds |
|---|---|
| `pull` | a published model as a bundle, without torch |
| `job` | one export from beginning to end: `export`, `check` |
| `towers` | the two towers of a model, ready for every exporter |
| `tracing` | tracing a tower with torch; naming an operation that a runtime lacks |
| `onnx` `openvino` `coreml` `executorch` `litert` | one writer per runtime |
| `mobile` | code shared by the writers for phones |
| `quantize` `sensitivity` | int8 for any runtime: which layers stay in higher precision |
| `quantize_onnx` `qdq` | int8 for ONNX Runtime, as quantise-dequantise pairs |
| `quantize_openvino` | int8 for OpenVINO, with NNCF |
| `features` | the image tower's feature maps, beside the towers of an ONNX bundle |
| `tower_files` | the files of both towers in a bundle's folder |
| `verify_towers` | comparison with the model, before the bundle is written whole |
"""
