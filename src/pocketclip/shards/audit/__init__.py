"""Is a reinforced set whole and right: inspected, repaired, recomputed."""
