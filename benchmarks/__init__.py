"""Speed and memory beside the libraries that people use, and how long a recipe takes: see README.md."""
