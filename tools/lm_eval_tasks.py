"""Five small tasks for the lm-evaluation-harness in its own form, YAML and JSON, made from a text that nothing was chosen on.

    python tools/lm_eval_tasks.py DIRECTORY [--docs N]
    stratakv lm-eval --include_path DIRECTORY --tasks stratakv_words,... --model_args pretrained=MODEL,profile=turbo4

Nothing is downloaded. The same arguments give the same tasks.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stratakv.assets import judging_text

DOCS = 60
_SEED = 7
_NAMES = ("Alice", "Bruno", "Clara", "David", "Emma", "Frank")
_ASKED = 3  # of a context with needles
_COPIED, _READ, _FILLER, _WHOLE = 60, 90, 600, 250  # words

Doc = dict[str, Any]

_EXACT = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "regexes_to_ignore": [r"^\s+", r"\s+$"],
}
_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_PPL = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
_TASKS: dict[str, dict[str, Any]] = {
    "copy": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 48},
        "metric_list": [_EXACT],
    },
    "needles": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
        "metric_list": [_EXACT],
    },
    "arithmetic": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: What is {{a}} plus {{b}}?\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 5,
        "metric_list": [_ACC],
    },
    "words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": " {{answer}}",
        "target_delimiter": "",
        "metric_list": [_PPL, _ACC],
    },
    "novel": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
}


def main() -> None:
    """Write the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--docs", type=int, default=DOCS, help=f"documents of a task, half as many to write ({DOCS})")
    args = parser.parse_args()
    print(",".join(write(args.directory, args.docs)))


def write(directory: Path, docs: int = DOCS) -> list[str]:
    """A YAML and JSON files for each task, of `docs` documents, half as many where answers are written; the tasks' names."""
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    text = judging_text().read_text(encoding="utf-8")
    made = {
        "copy": _copies(text, docs // 2),  # answers take longer
        "needles": _needles(text, docs // 2),
        "arithmetic": _sums(docs),
        "words": _words(text, docs),
        "novel": _novel(text, max(1, docs // 10)),
    }
    for name, found in made.items():
        files = {"test": _json(directory / f"{name}.jsonl", found)}
        if _TASKS[name].get("fewshot_split"):
            files["train"] = _json(directory / f"{name}.train.jsonl", _sums(8, seed=_SEED + 1))
        config = {
            "task": f"stratakv_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": str(directory / "cache")},
            "test_split": "test",
            **_TASKS[name],
        }
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return [f"stratakv_{name}" for name in made]


def _copies(text: str, docs: int) -> Iterator[Doc]:
    """A passage, its first words again; the answer is the rest of that sentence."""
    for passage in _passages(text, _COPIED, docs):
        first = passage.split(". ")[0].split()
        start, rest = first[: len(first) // 2], first[len(first) // 2 :]
        yield {"prompt": f"{passage}\n\n{' '.join(start)}", "answer": " ".join(rest).rstrip(".")}


def _needles(text: str, docs: int) -> Iterator[Doc]:
    """A context with three secret numbers in it, and one of them asked for at its end, three times."""
    draw = random.Random(_SEED)
    for passage in _passages(text, _FILLER, -(-docs // _ASKED)):
        words, names = passage.split(), draw.sample(_NAMES, _ASKED)
        values = [str(value) for value in draw.sample(range(1000, 10000), _ASKED)]
        parts, begin = [], 0
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            end = (2 * index + 1) * len(words) // (2 * _ASKED)
            parts += [*words[begin:end], f"The secret number of {name} is {value}."]
            begin = end
        parts += words[begin:]
        for name, value in zip(names, values, strict=True):
            yield {"prompt": f"{' '.join(parts)} The secret number of {name} is", "answer": value}


def _sums(docs: int, seed: int = _SEED) -> Iterator[Doc]:
    """Two numbers of two digits; the wrong answers are off by 1, 2 or 10."""
    draw = random.Random(seed)
    for _ in range(docs):
        a, b = draw.randint(10, 89), draw.randint(10, 89)
        choices = [a + b, *(a + b + off for off in draw.sample([-10, -2, -1, 1, 2, 10], 3))]
        draw.shuffle(choices)
        yield {"a": a, "b": b, "choices": [str(each) for each in choices], "right": choices.index(a + b)}


def _words(text: str, docs: int) -> Iterator[Doc]:
    """Everything up to the last word of a sentence; the answer is that word."""
    for passage in _passages(text, _READ, docs):
        prompt, _, last = passage.rstrip(".").rpartition(" ")
        yield {"prompt": prompt, "answer": last}


def _novel(text: str, docs: int) -> Iterator[Doc]:
    for passage in _passages(text, _WHOLE, docs):
        yield {"text": passage}


def _passages(text: str, words: int, count: int) -> Iterator[str]:
    """Whole sentences of about so many words that share no word of the text, from its beginning, spaces for line breaks."""
    sentences = re.findall(r"[A-Z][^.!?]{20,300}\.(?=\s)", " ".join(text.split()))
    held: list[str] = []
    there = 0
    for sentence in sentences:
        held.append(sentence)
        there += len(sentence.split())
        if there >= words and sentence[-2].isalpha():
            if count == 0:
                return
            yield " ".join(held)
            held, there, count = [], 0, count - 1


def _json(path: Path, docs: Iterator[Doc]) -> str:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
