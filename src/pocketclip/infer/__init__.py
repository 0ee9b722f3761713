"""Using a model: photographs and texts in, embeddings and labels out.

    from pocketclip import Encoder

    Encoder("phone/").classify("photo.jpg", ["a dog", "a cat"])

| module | holds |
|---|---|
| `encoder` | `Encoder` and `load`; `pocketclip.Encoder` and `pocketclip.load` are these |
| `loaded_model` | the part of `Encoder` that opens a model and loads its towers |
| `own_process` | a model for a process that does nothing else |
| `open_model` | the source of an `Encoder` opened: a bundle, or a model in torch |
| `ready` `model_cache` | without torch: a model converted once, and kept in the user's cache |
| `convert` | a model to an ONNX bundle without torch, with its check |
| `backends` | torch, ONNX Runtime and OpenVINO |
| `bundle` | the bundle format: `read`, `Bundle` |
| `verify` `comparison` `gates` | a bundle compared with its model, and how close it must be |
| `zero_shot` | classifiers from labels, and labels ranked |
| `text_cache` | the cache of text embeddings |
| `decode_memory` | the memory that several threads decode into |
| `vectors` | embeddings in files |
| `measure` | latency, throughput and memory |
"""
