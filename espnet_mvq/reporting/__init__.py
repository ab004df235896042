"""Results of experiments: training logs, error rates, the report of a run."""
