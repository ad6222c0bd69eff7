"""What the header of a LoRA says about its training: what people ask managers of LoRAs for.

Headers are strangers' data: every text is cut short, every number bounded.

Keys: `modelspec.*` (Stability AI's model metadata), `ss_*` (kohya's sd-scripts and kin), `training_info` (ai-toolkit).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from .header import text_of

MAX_TAGS = 20
MAX_TEXT = 200  # Letters.
_MOST_STEPS = 10**9


@dataclass(frozen=True)
class TrainingFacts:
    """Empty text, or None, where the header does not say.

    trigger: the phrase that its maker names. tags: see `caption_tags`. base: the model it was trained on, as named there.
    steps: that were trained. resolution: "WIDTHxHEIGHT" in pixels. date: of its training, "YYYY-MM-DD".
    """

    trigger: str
    tags: tuple[str, ...]
    base: str
    steps: int | None
    resolution: str
    date: str


def training_facts(metadata: Mapping[str, str]) -> TrainingFacts:
    """From a header's metadata, whatever it holds."""
    return TrainingFacts(
        trigger=_short(text_of(metadata, "modelspec.trigger_phrase")),
        tags=caption_tags(metadata),
        base=_first(metadata, "ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"),
        steps=next(_steps(metadata), None),
        resolution=next((found for key in ("modelspec.resolution", "ss_resolution") if (found := _size(text_of(metadata, key)))), ""),
        date=next(_dates(metadata), ""),
    )


def caption_tags(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The most frequent tags of the training captions, at most MAX_TAGS."""
    counts: Counter[str] = Counter()
    try:
        for folder in json.loads(text_of(metadata, "ss_tag_frequency") or "{}").values():
            counts.update({_short(str(tag)): int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return ()
    return tuple(tag for tag, _ in counts.most_common(MAX_TAGS) if tag)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _first(metadata: Mapping[str, str], *keys: str) -> str:
    return next((text for key in keys if (text := _short(text_of(metadata, key))) not in ("", "None")), "")


def _steps(metadata: Mapping[str, str]) -> Iterator[int]:
    try:
        trained = json.loads(text_of(metadata, "training_info") or "{}").get("step")
    except (ValueError, AttributeError, RecursionError):
        trained = None
    for found in (text_of(metadata, "ss_steps"), text_of(metadata, "ss_max_train_steps"), str(trained)):
        if re.fullmatch(r"[0-9]{1,10}", found) and 0 < int(found) < _MOST_STEPS:
            yield int(found)


def _size(text: str) -> str:
    """Of "1024x1024", "(1024, 1024)" or "1024"."""
    sides = re.findall(r"(?<![0-9])[0-9]{2,5}(?![0-9])", text[:MAX_TEXT])
    return f"{sides[0]}x{sides[min(1, len(sides) - 1)]}" if sides else ""


def _dates(metadata: Mapping[str, str]) -> Iterator[str]:
    if found := re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text_of(metadata, "modelspec.date")):
        yield found[0]
    for key in ("ss_training_finished_at", "ss_training_started_at"):
        try:
            yield datetime.fromtimestamp(float(text_of(metadata, key)), timezone.utc).date().isoformat()
        except (ValueError, OverflowError, OSError):
            continue
