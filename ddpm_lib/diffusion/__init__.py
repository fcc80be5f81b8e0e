"""The mathematics of diffusion: schedules, the forward process, its posterior, the bound, targets and losses."""
