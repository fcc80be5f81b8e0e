"""Models whose truth is known: Gaussian mixtures with their exact denoiser, toy networks, linear and small VAEs."""
