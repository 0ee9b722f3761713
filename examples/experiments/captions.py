"""Synthetic captions of the image itself, against those of another image.

    python examples/experiments/captions.py --data ../shared/data --out runs/experiments

The student sees one caption per image: a synthetic one of its own (`data.captions: synthetic`), or
one of another image (`data.captions: random`), with the teachers' embeddings of this caption. See
`experiment_runs`.
"""

from experiment_runs import Arm, Experiment, main

EXPERIMENT = Experiment(
    name="captions",
    title="Synthetic captions against random ones",
    question="Does it matter that a synthetic caption describes the image that it stands with?",
    papers="Random captions cost retrieval.",
    arms=(
        Arm(name="synthetic captions", captions="synthetic"),
        Arm(name="random captions", captions="random"),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
