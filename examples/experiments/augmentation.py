"""Strong augmentation against weak augmentation.

    python examples/experiments/augmentation.py --data ../shared/data --out runs/experiments

Stored embeddings belong to their views, so the set is reinforced twice, by the same teacher, with
five views per image: nearly whole images, and DataCompDR's augmentation (crops of 8 to 100 % and
RandAugment). The teacher of the groceries is trained first, by the recipe `grocery-teacher`. See
`experiment_runs`.
"""

from experiment_runs import Arm, Experiment, main

EXPERIMENT = Experiment(
    name="augmentation",
    title="Strong augmentation against weak",
    question="Does strong augmentation help, in classification and in retrieval?",
    papers="Strong augmentation helps.",
    arms=(
        Arm(name="strong augmentation", reinforcement="strong"),
        Arm(name="weak augmentation", reinforcement="weak"),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
