"""Files and text from elsewhere, read with limits and without running anything in them.

| module | reads |
|---|---|
| `parsing` | lines, JSON and YAML |
| `tar` | tar archives |
| `npy` | numpy's arrays |
| `torch_zip` | the zip archives that `torch.save` writes |
| `image_metadata` | what stands beside the pixels of an image |
| `lfs` | pointers of git-LFS, which stand where a file should be |
| `escaping` | names, labels and captions, made safe to show and store |
"""
