"""From a folder of text files to one row of token ids, and windows of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<|bos|>", "<|eos|>"
HELD_OUT = ("dracula", "sherlock", "two-cities", "wikitext")  # never trained on: texts that models are judged on
SEPARATOR = re.compile(r"\s*(?:<\|endoftext\|>|</?doc\b[^>\n]*>)\s*")  # between the documents of one file


def documents(corpus: Path) -> list[str]:
    """The documents of all .txt files in the folder `corpus`, in the order of the files' names.

    Files whose name contains one of HELD_OUT are left out. Raises ValueError where nothing is left.
    """
    files = [path for path in sorted(corpus.glob("*.txt")) if not any(name in path.stem.lower() for name in HELD_OUT)]
    found = [text for path in files for text in SEPARATOR.split(path.read_text(encoding="utf-8")) if text]
    if not found:
        raise ValueError(f"{corpus}: no .txt file with text besides the held-out ones ({', '.join(HELD_OUT)})")
    return found


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE of `vocabulary` entries with GPT-2's pre-tokenizer; ids 0 and 1 are BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes it in Hugging Face format, for sequences of up to `context` tokens."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, model_max_length=context
    ).save_pretrained(folder)


def token_row(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents' ids in a row, BOS before each: int32 [tokens]."""
    bos = [tokenizer.token_to_id(BOS)]
    rows = [np.array(bos + tokenizer.encode(text).ids, dtype=np.int32) for text in texts]
    return torch.from_numpy(np.concatenate(rows))


def windows(row: torch.Tensor, step: int, batch: int, tokens: int, seed: int) -> torch.Tensor:
    """The batch of `step`: int64 [batch, tokens + 1]; only `seed` and `step` decide it, so a run can resume."""
    if len(row) <= tokens:
        raise ValueError(f"the text has {len(row)} tokens, a window needs {tokens + 1}")
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(row) - tokens, (batch, 1), generator=generator)
    return row[starts + torch.arange(tokens + 1)].long()
