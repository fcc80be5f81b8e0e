"""What tests of several rooms need."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def random_images():
    """A function that writes images of random pixels, 00.png and on, into the classes' folders by turns."""

    def write(root, count, classes, size=lambda i: (6, 6)):
        for i in range(count):
            path = root / classes[i % len(classes)] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size(i), 3), dtype=np.uint8)).save(path)
        return root

    return write
