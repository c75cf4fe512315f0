"""What people look at: the report, plans, comparisons, drift, a run in a terminal."""
