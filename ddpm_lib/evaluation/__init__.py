"""How good are the samples? Metrics."""
