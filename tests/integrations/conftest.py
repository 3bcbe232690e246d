from random import Random

import pytest
from PIL import Image

import mmspec
from mmspec.engine import Engine
from mmspec.training.tiny.data import caption


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The bundled model; drafting does not depend on the clock."""
    return mmspec.load("tiny-vlm", overrides={"decode.controller": "fixed"})


@pytest.fixture(scope="session")
def picture() -> tuple[Image.Image, str]:
    """Coloured shapes, and the question that the model was trained to answer about them."""
    sample = caption(Random("integrations"), held_out=True)
    assert sample.image is not None
    return sample.image, sample.prompt_text
