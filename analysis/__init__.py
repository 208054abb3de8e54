"""From MLflow to the answer: one tidy table, its figures, the report."""
