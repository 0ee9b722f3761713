"""A label set from a few labelled photographs, in seconds and without torch.

    fitted = fit_labels(pocketclip.load("laptop/"), "shelf/")
    fitted.label_set.write("labels.json")

| module | holds |
|---|---|
| `pipeline` | photographs to a label set: what `pocketclip fit` does |
| `head` | ridge and logistic regression, pulled towards the zero-shot classifier |
| `cross_validation`, `folds` | how strongly, chosen on held-out photographs |
| `calibration` | temperature, calibration error, and the threshold of "none" |
| `summary` | worst classes, confusions, doubtful labels |
"""

from pocketclip.fit.pipeline import FitOptions, Fitted, fit_labels
from pocketclip.label_set import LabelSet, NoneOfThese, read_label_set

__all__ = ["FitOptions", "Fitted", "LabelSet", "NoneOfThese", "fit_labels", "read_label_set"]
