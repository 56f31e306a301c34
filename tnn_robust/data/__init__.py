"""Named data sets, file readers and splits, ending as (x in [0, 1], y)."""
