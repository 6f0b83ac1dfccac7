"""lm-evaluation-harness' local-completions: log-likelihoods of choices, and greedy text, on a task of two questions."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from features import MODEL, V1, report

TOKENIZER = sys.argv[3]
folder = Path(tempfile.mkdtemp())
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "xqzt vvv kkk"], "answer": 0},
    {"question": "One, two, three,", "choices": ["zebra zebra zebra", "four"], "answer": 1},
]
(folder / "questions.json").write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "questions.json")}},
        "test_split": "test", "doc_to_text": "{{question}}"}  # fmt: skip
CHOICES = {**DATA, "task": "choices", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
           "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]}  # fmt: skip
ROLLING = {**DATA, "task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}",
           "doc_to_text": "", "metric_list": [{"metric": "word_perplexity"}]}  # fmt: skip
WRITING = {**DATA, "task": "writing", "output_type": "generate_until", "doc_to_target": "x",
           "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}]}  # fmt: skip


def evaluate(task: dict[str, object]) -> dict[str, float]:
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{V1}/completions", model=MODEL, tokenizer=TOKENIZER, tokenizer_backend="huggingface", max_length=256
    )
    results = simple_evaluate(model, tasks=[task], bootstrap_iters=0)
    return results["results"][task["task"]]


def scoring() -> None:
    assert evaluate(CHOICES)["acc,none"] == 1.0
    assert 1 < evaluate(ROLLING)["word_perplexity,none"] < 1e6


def chat() -> None:
    assert "exact_match,none" in evaluate(WRITING)


report({"chat": chat, "scoring": scoring})
