"""A look at an I-LoRA while it is trained: a picture, its map as it is learnt so far, and the true map."""

from collections.abc import Callable

from ...methods.formats import picture_of
from ...methods.intrinsic_lora.multi_step import SINGLE
from ..backbones.backbone import SingleStepBase, TextEmbeddings
from ..look import Sample, shown_source, true_pictures
from ..pairs import IMAGE
from .config import IntrinsicLoraConfig
from .noise import noise_for
from .predict import predict_maps
from .sample import predict_maps_in_steps

# Enough to see what is learnt: a look shall cost little.
STEPS = 8


def map_look(config: IntrinsicLoraConfig, base: SingleStepBase, text: TextEmbeddings) -> Callable[[], Sample]:
    """What shows the map that `base`, with its adapter, makes of the shown picture."""
    source = shown_source(config.data.source(config.map))
    picture_bchw, true = source.read(IMAGE, [0]), true_pictures(source, (IMAGE, config.map))
    noise = None if config.method == SINGLE else noise_for(config.base, config.method)

    def look() -> Sample:
        if noise is None:
            predicted = predict_maps(base.network, base.vae, text, picture_bchw, config.map, reading=config.reading)
        else:
            predicted = predict_maps_in_steps(base, noise, picture_bchw, config.map, steps=STEPS)
        return [{"picture": true[IMAGE], "learnt so far": picture_of(config.map, predicted)[0], "true": true[config.map]}]

    return look
