"""Reinforcing a dataset: synthetic captions, augmentations and teachers' embeddings, stored once.

    from pocketclip.pairs import open_pairs
    from pocketclip.reinforce.job import run
    from pocketclip.reinforce.recipe import load_recipe

    run(open_pairs("pairs.csv"), load_recipe(teachers=["vit-b16"]), "reinforced")

| module | holds |
|---|---|
| `recipe` | the reinforce recipe: what to make, from a YAML file or arguments |
| `job` | the job on one machine: pairs in, reinforced shards out |
| `resume` | which shards are finished; reports, lists of bad pairs, claims on the folder |
| `cluster` | the job on a Ray cluster, by the actors of `pocketclip.cluster` |
| `engine` | a recipe with its models loaded: prepared pairs in, samples out |
| `prepare`, `workers` | decoding and augmenting, without torch; the processes that do it |
| `teachers` | models that embed: `Teacher`, `load_teacher` |
| `teacher_check`, `check_report` | what teachers score on a sample; the job's check |
| `own_models` | teachers and captioners of the user's own code |
| `captioning`, `caption_inputs` | captions alone: of photographs |
| `caption_table`, `caption_rows` | to a table; its files |
| `earlier` | the captioners of an earlier run |
| `captioners` | models that write captions: `Captioner`, `load_captioner` |
| `sampling` | how captioners sample |
| `protocols` | code shared by all kinds of teachers and captioners |
| `zoo_towers`, `hf_towers`, `open_clip_towers` | teachers of the zoo, transformers, open_clip |
| `coca_captioner`, `hf_captioner` | captioners of the zoo and of transformers |
| `hf` | folders of transformers: files, weights, tokenizer, identity |
| `teacher_preprocess` | from any image to the square that a model takes |
| `specs` | names of teachers and captioners |
| `audit` | embed stored augmentations again, and compare |
"""
