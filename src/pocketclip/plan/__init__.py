"""Plan a reinforcement and a training: storage, GPU hours, network, cores and cost.

    from pocketclip.plan import Rates, Scale, load_recipes, make_plan

    recipes = load_recipes("mobileclip-datacompdr1b")
    plan = make_plan(recipes, Scale(pairs=1_300_000_000), Rates())

| module | holds |
|---|---|
| `work` | the lines of a plan |
| `sizes` | bytes per sample, of a recipe or of a dataset |
| `rates` | rates of GPUs and cores, from files |
| `numbers` | 12M, 1.3B and bytes, as people write and read them |

No torch is imported, except to encode bfloat16 embeddings.
"""

from __future__ import annotations

from pocketclip.plan.numbers import parse_count, parse_number
from pocketclip.plan.rates import KINDS, Rate, Rates, parse_rate, read_rates
from pocketclip.plan.sizes import Sizes, measure_dataset, measure_recipe
from pocketclip.plan.work import Line, Plan, Prices, Recipes, Scale, load_recipes, make_plan

__all__ = [
    "KINDS",
    "Line",
    "Plan",
    "Prices",
    "Rate",
    "Rates",
    "Recipes",
    "Scale",
    "Sizes",
    "load_recipes",
    "make_plan",
    "measure_dataset",
    "measure_recipe",
    "parse_count",
    "parse_number",
    "parse_rate",
    "read_rates",
]
