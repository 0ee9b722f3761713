"""Using a model: photographs and texts in, embeddings and labels out.

    from pocketclip import Encoder

    Encoder("phone/").classify("photo.jpg", ["a dog", "a cat"])

| module | holds |
|---|---|
| `encoder` | `Encoder` and `load`; `pocketclip.Encoder` and `pocketclip.load` are these |
| `loaded_model` | the part of `Encoder` that opens a model and loads its towers |
| `open_model` | the source of an `Encoder` opened: a bundle, or a model in torch |
| `backends` | torch, ONNX Runtime and OpenVINO |
| `bundle` | the bundle format: `read`, `Bundle` |
| `verify` `gates` | a bundle compared with its model; how close it must come, by precision |
| `zero_shot` | classifiers from labels, and labels ranked |
| `text_cache` | the cache of text embeddings |
| `vectors` | embeddings in files |
| `measure` | latency, throughput and memory |
"""
