"""From noise to images: ancestral sampling, DDIM, guidance."""
