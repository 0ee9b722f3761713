"""Distillation only, against distillation with CLIP's loss beside it.

    python examples/experiments/distillation.py --data ../shared/data --out runs/experiments

A student learns from a reinforced set with the loss (1 - lambda) * CLIP's + lambda * distillation
(MobileCLIP, arXiv 2311.17049, section 4.2), with lambda 1, 0.75 and 0.5. See `experiment_runs`.
"""

from experiment_runs import Arm, Experiment, main

EXPERIMENT = Experiment(
    name="distillation",
    title="Distillation only",
    question="What does distillation alone (lambda 1) give in classification and in retrieval, "
    "against lambda 0.75 and 0.5?",
    papers="A lambda near 1 is the best for classification, and a smaller one for retrieval.",
    arms=(Arm(name="both captions"),),
)

if __name__ == "__main__":
    main(EXPERIMENT)
