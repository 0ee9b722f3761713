"""Towers and models in torch: the only room that defines modules.

    from pocketclip.nn.build import create_model
    from pocketclip.nn.reparam import fuse

    model = fuse(create_model("mobileclip2-s0"))

| module | holds |
|---|---|
| `build` | models built from a configuration or a zoo name |
| `clip` | `CLIP`, the two-tower model |
| `coca`, `decoder` | `CoCa`, the captioner, and its caption decoder |
| `mci` | MCi, the convolution-attention image towers |
| `vit` | vision transformer image towers |
| `text` | text towers |
| `repmixer` | RepMixer and its blocks |
| `reparam` | re-parameterisation: foldable branches, and `fuse` |
| `transformer` | attention, transformer blocks, KV cache, gradient checkpointing |
| `moe`, `upcycle` | mixtures of experts; dense models made sparse |
| `lora` | low-rank updates of frozen weights, for training |
| `generate`, `sampling` | caption generation; ids drawn from logits |
| `cpu_optimize` | fused models rearranged and compiled for CPUs |
"""

from pocketclip.nn import clip, mci, reparam, text, transformer, vit

__all__ = ["clip", "mci", "reparam", "text", "transformer", "vit"]
