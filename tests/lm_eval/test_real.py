"""On a model of other people: its own chat template, and perplexity as `compare` has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_models import GEMMA3, SMOLLM2, needs_models

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make lm-eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from stratakv.assets import judging_text
from stratakv.engine.load import LoadedModel, load_model
from stratakv.lm_eval import PackedLM
from stratakv.lm_eval.scoring import score
from stratakv.measure.corpus import cut, read_text
from stratakv.measure.run import measure
from stratakv.profile import resolve
from stratakv.serve.api.prompts import Prompter

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_models]

CHATS = [
    [{"role": "user", "content": "What is 2 plus 3?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Which month comes after May?"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Write\na  poem "},
    ],
]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model(str(SMOLLM2))


def prompter_of(loaded: LoadedModel) -> Prompter:
    return Prompter(loaded.tokenizer, loaded.model.get_input_embeddings().num_embeddings, loaded.geometry.context)


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_is_the_server_s_prompt_to_the_token(chat: list[dict[str, str]], smollm2: LoadedModel) -> None:
    ours, server = PackedLM(smollm2, "turbo4"), prompter_of(smollm2)
    text = ours.apply_chat_template(chat)
    assert text == server.chat_text(chat)
    assert text.startswith("<|im_start|>") and text.endswith("<|im_start|>assistant\n")
    assert tuple(ours.tok_encode(text)) == server.chat(chat)
    server.close()


def test_what_the_model_is_handed_is_the_chat(
    smollm2: LoadedModel, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the harness, by both of its ways: an answer that is written, and choices that are scored."""
    names = ["stratakv_copy", "stratakv_arithmetic"]
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip and the system
    data = simple_evaluate(
        model=PackedLM(smollm2, "turbo4", batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        limit=2,
        apply_chat_template=True,
        bootstrap_iters=10,
    )
    assert data is not None
    server = prompter_of(smollm2)
    for sample in data["samples"]["stratakv_copy"]:
        prompt = sample["arguments"][0][0]
        assert prompt == server.chat_text([{"role": "user", "content": sample["doc"]["prompt"]}])
    for sample in data["samples"]["stratakv_arithmetic"]:
        contexts = {each[0] for each in sample["arguments"]}
        (context,) = contexts
        assert context.startswith("<|im_start|>") and context.endswith("<|im_start|>assistant\n")
        assert f"What is {sample['doc']['a']} plus {sample['doc']['b']}?" in context
    server.close()


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA3], ids=lambda path: path.stem)
def test_exact_log_likelihoods_are_those_of_compare(model: Path) -> None:
    """The same context of 256 tokens: what `compare` scores there, and what a task would."""
    ours = PackedLM(str(model), exact=True)
    loaded = load_model(str(model), exact=True)
    contexts = cut(read_text(judging_text()), loaded.tokenizer, 256, 1)
    profiles = [resolve(name, loaded.geometry) for name in ("turbo4", "tcq3")]
    baseline, scores = measure(loaded, contexts, profiles, batch=512)
    (ids,) = contexts.ids
    known, asked = ids[: contexts.first + 1].tolist(), ids[contexts.first + 1 :].tolist()
    f16 = resolve("f16", loaded.geometry)
    for profile, theirs in zip((f16, *profiles), (baseline, *scores), strict=True):
        ((nats, _),) = score(ours.loaded, profile, [(known, asked)], longest=1024, batch_size=1)
        assert nats == pytest.approx(-float(theirs.nll.sum()), rel=1e-5)
    rough = PackedLM(str(model))
    ((nats, _),) = score(rough.loaded, f16, [(known, asked)], longest=1024, batch_size=1)
    assert nats == pytest.approx(-float(baseline.nll.sum()), rel=0.02)
    assert nats != pytest.approx(-float(baseline.nll.sum()), rel=1e-5), "activations are rounded there"
