"""Trains a reference model from a folder of text files and writes it in Hugging Face format.

`.venv/bin/python tools/train_reference_model.py --recipe strata-8m --corpus ../shared/corpus/train --output runs/8m`

strata-8m takes about an hour on two CPU cores with the Makefile's allocator settings. A run that was interrupted goes
on from its last checkpoint when started again; OMP_NUM_THREADS=1 and a second recipe beside it make more of two cores
than two threads. Needs torch 2.9 or later. The result is a sibling of the frozen
strata-8m with other weights: give it another name.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from training.loop import train
from training.recipes import RECIPES, Recipe
from training.text import documents, save_tokenizer, token_row, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def make_model(
    recipe: Recipe,
    corpus: Path,
    output: Path,
    device: torch.device,
    tokenizer: Path | None = None,
    stop_after: int | None = None,
) -> None:
    """Trains the tokenizer and the model, or goes on; writes the finished model (bf16) only after the last step.

    `tokenizer`: the tokenizer.json to use instead of training one; its size has to be the recipe's vocabulary.
    """
    output.mkdir(parents=True, exist_ok=True)
    texts = documents(corpus)
    saved = output / "tokenizer.json"
    if not saved.exists():
        made = Tokenizer.from_file(str(tokenizer)) if tokenizer else train_tokenizer(texts, recipe.vocabulary)
        if made.get_vocab_size() != recipe.vocabulary:
            raise ValueError(f"{tokenizer} has {made.get_vocab_size()} entries, the recipe {recipe.vocabulary}")
        save_tokenizer(made, output, recipe.context)
    row = token_row(Tokenizer.from_file(str(saved)), texts)
    print(f"{len(texts):,} documents, {len(row):,} tokens")
    model, losses = train(recipe, row, output, device=device, stop_after=stop_after)
    if len(losses) < recipe.steps:
        return
    nn.Module.to(model, torch.bfloat16)  # transformers' own `to` is not typed
    model.save_pretrained(output)
    record = {"recipe": asdict(recipe), "tokens": len(row), "torch": torch.__version__, "losses": losses}
    (output / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{output}: {model.num_parameters():,} parameters, mean loss of the last 50 steps {mean(losses[-50:]):.4f}")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a reference model and write it in Hugging Face format.")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="strata-8m")
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "corpus" / "train")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint, tokenizer and model")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to use instead of a new one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="end early; start again to go on")
    options = parser.parse_args()
    recipe = replace(RECIPES[options.recipe], seed=options.seed)
    device = torch.device(options.device)
    make_model(recipe, options.corpus, options.output, device, options.tokenizer, options.stop_after)


if __name__ == "__main__":
    main()
