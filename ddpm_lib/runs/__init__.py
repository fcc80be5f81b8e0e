"""A run from end to end: recipes, run folders, trained models, the self-test."""
