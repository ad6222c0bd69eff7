"""Which experiments there are: what each varies, and the training that a place on its axis means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from pathlib import Path

from ...evaluate.predictions import Sampling
from ..folder_data import FewPairs, FolderData
from ..intrinsic_lora import IntrinsicLoraConfig
from ..intrinsic_lora.adapter import LAYERS
from ..pairs import JoinedData, SceneData

# What a place of the axis makes of the settings that all runs share. Raises ValueError, in words, for a value that is none.
Change = Callable[[IntrinsicLoraConfig, str], IntrinsicLoraConfig]


@dataclass(frozen=True)
class Method:
    """What learns. kind: of the trainer; empty for the one that was asked for. rate: its learning rate over a LoRA's."""

    title: str
    kind: str
    rate: float

    def applied(self, config: IntrinsicLoraConfig) -> IntrinsicLoraConfig:
        loop = replace(config.loop, learning_rate=self.rate * config.loop.learning_rate)
        return replace(config, kind=self.kind or config.kind, loop=loop)


METHODS = {
    "lora": Method("LoRA", "", 1.0),
    # One convex layer that begins at zero, and every weight of a trained network.
    "probe": Method("linear probe", "probe", 10.0),
    "full": Method("full fine-tuning", "full", 0.2),
}


@dataclass(frozen=True)
class Experiment:
    """title: its question. axis: what is varied, as a heading. values: the usual places on it, none where only a person can say them.

    varies: the setting that the axis, not a person, chooses; empty where it is none of the training. change: of the training; sampling: of
    how a multi-step network is asked. compares: whether every place is tried with each of `METHODS`. titles: of places that need more than
    their value.
    """

    name: str
    title: str
    axis: str
    values: tuple[str, ...]
    varies: str = ""
    change: Change = lambda config, value: config
    sampling: Callable[[str], Sampling] | None = None
    compares: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)


def _number(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{name} is {value!r}: a whole number of at least 1 is wanted.")
    return int(value)


def _guidance(value: str) -> float:
    try:
        guidance = float(value)
    except ValueError:
        guidance = nan
    if not isfinite(guidance):
        raise ValueError(f"the guidance is {value!r}: a number is wanted.")
    return guidance


def _with_labels(config: IntrinsicLoraConfig, value: str) -> IntrinsicLoraConfig:
    """Scenes are drawn anew for every number: the first so many; of a data set, so many are drawn by the run's seed."""
    count, data = _number("the number of labels", value), config.data
    if isinstance(data, SceneData):
        return replace(config, data=replace(data, count=count))
    if isinstance(data, JoinedData):
        raise ValueError("several sets of scenes have no first labels: give one.")
    if isinstance(data, FolderData) and not isinstance(data, FewPairs):
        data = FewPairs(**vars(data))
    return replace(config, data=replace(data, labels=count))


def _with_layers(config: IntrinsicLoraConfig, value: str) -> IntrinsicLoraConfig:
    return replace(config, layers=value)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "control",
            "Is the knowledge in the trained base, or in the LoRA?",
            "base",
            ("trained", "random"),
            "init",
            lambda config, value: replace(config, init=value),
            titles={"trained": "trained", "random": "random initialisation"},
        ),
        Experiment(
            "ranks",
            "How small may the LoRA be?",
            "rank",
            ("2", "4", "8", "16", "32"),
            "rank",
            lambda config, value: replace(config, rank=_number("the rank", value)),
        ),
        Experiment(
            "labels",
            "How many labels are needed, and does a LoRA need fewer than others?",
            "labels",
            ("250", "1000", "4000", "16000"),
            "labels",
            _with_labels,
            compares=True,
        ),
        Experiment(
            "layers",
            "Which layers must the LoRA change?",
            "layers",
            (*LAYERS[1:], LAYERS[0]),
            "layers",
            _with_layers,
            titles={
                "up": "up blocks",
                "mid": "mid block",
                "down": "down blocks",
                "self": "self-attention",
                "cross": "cross-attention",
                "all": "both, in all blocks",
            },
        ),
        Experiment(
            "bases",
            "Do better bases know more?",
            "base",
            (),
            "base",
            lambda config, value: replace(config, base=Path(value)),
        ),
        Experiment(
            "steps",
            "How many steps does a multi-step model need?",
            "sampling steps",
            ("2", "5", "10", "25", "50"),
            sampling=lambda value: Sampling(steps=_number("the number of steps", value)),
        ),
        Experiment(
            "guidance",
            "How far should a multi-step model be guided by its prompt?",
            "guidance",
            ("1", "2", "3", "5", "7.5"),
            sampling=lambda value: Sampling(guidance=_guidance(value)),
        ),
    )
}
