"""Denoising diffusion models, one module an idea, each introduced by one chapter of the book in `chapters/`.

Nothing is re-exported: `from ddpm_lib.schedule import linear_schedule` says where a thing lives, and importing
one module loads only what that module needs. `CHAPTER` says which chapter introduces which module. A module
imports only modules of its own or earlier chapters, and so does a notebook; the tests enforce it.
"""

__version__ = "0.1.0"

CHAPTER = {
    "plot": 0,
    "checks": 0,
    "checks.chapter_00": 0,
    "gaussian": 1,
    "checks.chapter_01": 1,
    "data": 2,
    "vae": 2,
    "checks.chapter_02": 2,
    "schedule": 3,
    "forward": 3,
    "checks.chapter_03": 3,
    "posterior": 4,
    "checks.chapter_04": 4,
    "elbo": 5,
    "checks.chapter_05": 5,
    "targets": 6,
    "loss": 6,
    "oracle": 6,
    "toy": 6,
    "checks.chapter_06": 6,
    "ancestral": 7,
    "ddim": 8,
    "cosine": 9,
    "timesteps": 9,
    "embedding": 10,
    "blocks": 10,
    "unet": 10,
    "interop": 10,
    "checks.chapter_10": 10,
    "image_files": 11,
    "datasets": 11,
    "feed": 11,
    "ema": 11,
    "checkpoint": 11,
    "trainer": 11,
    "train": 11,
    "monitor": 11,
    "checks.chapter_11": 11,
    "guidance": 14,
    "metrics": 15,
    "recipes": 16,
    "trained": 16,
    "runs": 16,
    "selftest": 16,
    "__main__": 16,
}
