"""Denoising diffusion models, one module an idea, each introduced by one chapter of the book in `chapters/`.

Nothing is re-exported: `from ddpm_lib.diffusion.schedule import Schedule` says where a thing lives, and importing one
module loads only what that module needs. Two tables hold the house in order, and the tests enforce both: `ROOMS` says
which folder may import which; `CHAPTER` says which chapter introduces which module, and a module or a notebook imports
only modules of its own or earlier chapters.
"""

__version__ = "0.1.0"

# Each room, and the rooms that it may import; what stands in no folder is a room of its own.
GROUND = ("plot", "gaussian", "devices")
ROOMS = {
    **{name: () for name in GROUND},
    "diffusion": GROUND,
    "images": GROUND,
    "exact": (*GROUND, "diffusion"),
    "networks": (*GROUND, "diffusion"),
    "samplers": (*GROUND, "diffusion"),
    "training": (*GROUND, "diffusion", "images"),
    "evaluation": (*GROUND, "images", "samplers"),
    "runs": (*GROUND, "diffusion", "images", "networks", "samplers", "training", "evaluation"),
    "checks": (*GROUND, "diffusion", "exact", "images", "networks", "samplers", "training", "evaluation"),
    "__main__": (*GROUND, "networks", "samplers", "training", "runs"),
}

CHAPTER = {
    "plot": 0,
    "checks": 0,
    "checks.equation": 0,
    "checks.message": 0,
    "checks.record": 0,
    "checks.compare": 0,
    "checks.raised": 0,
    "checks.report": 0,
    "checks.guard": 0,
    "checks.errata": 90,  # appendices come after all chapters
    "checks.chapter_00": 0,
    "gaussian": 1,
    "checks.chapter_01": 1,
    "images.data": 2,
    "exact.vae": 2,
    "checks.chapter_02": 2,
    "devices": 3,
    "checks.noise": 3,
    "diffusion.schedule": 3,
    "diffusion.forward": 3,
    "checks.chapter_03": 3,
    "diffusion.posterior": 4,
    "checks.chapter_04": 4,
    "diffusion.elbo": 5,
    "checks.chapter_05": 5,
    "diffusion.targets": 6,
    "diffusion.loss": 6,
    "exact.oracle": 6,
    "exact.toy": 6,
    "checks.chapter_06": 6,
    "samplers.ancestral": 7,
    "exact.reverse": 7,
    "checks.chapter_07": 7,
    "samplers.ddim": 8,
    "diffusion.cosine": 9,
    "diffusion.timesteps": 9,
    "networks.embedding": 10,
    "networks.blocks": 10,
    "networks.unet": 10,
    "networks.interop": 10,
    "checks.layers": 10,
    "checks.chapter_10": 10,
    "images.image_files": 11,
    "images.datasets": 11,
    "images.workers": 11,
    "images.decoded": 11,
    "images.feed": 11,
    "images.fingerprint": 11,
    "training.ema": 11,
    "training.checkpoint": 11,
    "training.trainer": 11,
    "training.loop": 11,
    "training.monitor": 11,
    "checks.chapter_11": 11,
    "samplers.guidance": 14,
    "evaluation.metrics": 15,
    "runs.recipes": 16,
    "runs.describe": 16,
    "runs.stored": 16,
    "runs.folder": 16,
    "runs.model": 16,
    "runs.run": 16,
    "runs.selftest": 16,
    "runs.arguments": 16,
    "__main__": 16,
}
