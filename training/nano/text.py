"""The nano text encoder: a two-layer CLIP with a vocabulary of its own, made from the captions of `scenes`."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from ...methods.maps import MAPS
from ...scenes import sample_scenes
from ..atomic import write_atomically

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def caption_words() -> Counter:
    """Every word that captions use, with its count, and the words of the maps' prompts."""
    words = Counter()
    for caption in sample_scenes(range(2000)).captions:
        words.update(caption.replace(",", " ").split())
    for kind in MAPS.values():
        words.update({word: 1000 for word in kind.prompt.split()})
    return words


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE tokenizers use (GPT-2, CLIP)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Counter) -> list[tuple[str, str]]:
    """Byte-pair encoding until every word is one token."""
    pieces = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in sorted(words)}
    merges = []
    while True:
        pairs = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for word, parts in pieces.items():
            joined, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
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
        write_atomically(folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))


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
