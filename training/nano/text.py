"""The nano text encoder: a two-layer CLIP with a vocabulary of its own, made from the captions of `scenes`."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from ...methods.maps import MAPS
from ...scenes import sample_scenes
from ..atomic import write_atomically, write_text

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def caption_words(kinds: Sequence[str] = ("room",)) -> Counter[str]:
    """Every word that captions of these kinds of scenes use, with its count, and the words of the maps' prompts."""
    words: Counter[str] = Counter()
    for kind in kinds:
        for caption in sample_scenes(range(2000), kind=kind).captions:
            words.update(caption.replace(",", " ").split())
    for kind in MAPS.values():
        words.update({word: 1000 for word in kind.prompt.split()})
    return words


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE tokenizers use (GPT-2, CLIP)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Counter[str], known: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Byte-pair encoding, from the merges that are `known`, until every word is one token. Returns the new merges."""
    pieces = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in sorted(words)}
    for pair in known:
        _merge(pieces, pair)
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        _merge(pieces, best)


def _merge(pieces: dict[str, list[str]], pair: tuple[str, str]) -> None:
    """Join every neighbouring `pair` in the pieces of all words, in place."""
    for word, parts in pieces.items():
        joined, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == pair:
                joined.append(parts[i] + parts[i + 1])
                i += 2
            else:
                joined.append(parts[i])
                i += 1
        pieces[word] = joined


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json in CLIP's format."""
    alphabet = byte_alphabet()
    merges = learn_merges(caption_words())
    tokens = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
    }
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    for name, text in {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": lines,
        "tokenizer_config.json": json.dumps(settings, indent=1),
    }.items():
        write_text(folder / name, text)


def extend_tokenizer(folder: Path, target: Path, text_encoder, kinds: Sequence[str]) -> None:
    """Write to `target` the tokenizer in `folder` with the words of these kinds of scenes added, and add their rows to the encoder.

    What is there keeps its number and its vector; a new word begins as the mean of the pieces that it was read as before.
    """
    from transformers import CLIPTokenizer

    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    header, *lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    known = [(left, right) for left, right in map(str.split, lines)]
    merges = learn_merges(caption_words(kinds), known)
    new = [token for token in dict.fromkeys("".join(pair) for pair in merges) if token not in vocabulary]
    before = CLIPTokenizer.from_pretrained(folder)
    add_words(text_encoder, [before(token.removesuffix(END_OF_WORD), add_special_tokens=False).input_ids for token in new])
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(new)}
    lines += [" ".join(pair) for pair in merges]
    shutil.copytree(folder, target, dirs_exist_ok=True)
    write_text(target / "merges.txt", "\n".join([header, *lines]) + "\n")
    text = json.dumps(vocabulary, ensure_ascii=False)
    write_text(target / "vocab.json", text)
    # transformers reads this file before the two others: it is made anew from them.
    (target / "tokenizer.json").unlink(missing_ok=True)
    whole = CLIPTokenizer.from_pretrained(target).backend_tokenizer
    write_atomically(target / "tokenizer.json", lambda path: whole.save(str(path)))


@torch.no_grad()
def add_words(text_encoder, pieces: Sequence[Sequence[int]]) -> None:
    """Append a row to the encoder's token embeddings for each new word: the mean of the rows of its pieces."""
    table = text_encoder.get_input_embeddings().weight.clone()
    text_encoder.resize_token_embeddings(len(table) + len(pieces), mean_resizing=False)
    grown = text_encoder.get_input_embeddings().weight
    for row, ids in enumerate(pieces, start=len(table)):
        grown[row] = table[list(ids)].mean(0)


def build_text_encoder(vocabulary: int):
    """CLIPTextModel with random weights: 2 layers of 64, 77 positions."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=64,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
