"""The class inside the harness: whole tasks, the same numbers as its own `hf`, answers, chats, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make lm-eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from stratakv.engine.cache import KVCache
from stratakv.engine.generate import Sampling, generate
from stratakv.engine.load import LoadedModel, load_model
from stratakv.errors import UserError
from stratakv.lm_eval import PackedLM
from stratakv.profile import resolve

TASKS = [f"stratakv_{name}" for name in ("copy", "needles", "arithmetic", "words", "novel")]
STORY = "Once upon a time there was a little girl who lived in"


def asked(*arguments: Any) -> Instance:
    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)


def evaluated(model: Any, tasks: Path, names: list[str], **options: Any) -> dict[str, Any]:
    """Without standard errors unless they are asked for: the harness starts processes for each that it draws."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"bootstrap_iters": 0, **options}
    data = simple_evaluate(model=model, tasks=names, task_manager=manager, **options)
    assert data is not None
    return data


def test_the_harness_knows_it_and_still_its_own() -> None:
    assert get_model("stratakv") is PackedLM
    assert get_model("dummy").__name__ == "DummyLM"


def test_every_kind_of_task_runs_and_the_result_says_what_was_stored(loaded: LoadedModel, tasks: Path) -> None:
    data = evaluated(PackedLM(loaded, "q8_0/turbo4", batch_size=3), tasks, TASKS, limit=2, bootstrap_iters=10)
    assert sorted(data["results"]) == sorted(TASKS)
    assert data["results"]["stratakv_words"]["perplexity,none"] > 1
    assert 0 <= data["results"]["stratakv_arithmetic"]["acc,none"] <= 1
    assert data["results"]["stratakv_copy"]["exact_match_stderr,none"] is not None
    assert data["results"]["stratakv_novel"]["word_perplexity,none"] > 1
    config = data["config"]
    assert config["profile"] == "q8_0/turbo4" and config["profile_layers"] == [["q8_0", "turbo4"]] * 12
    assert config["bytes_per_token"] == resolve("q8_0/turbo4", loaded.geometry).bytes_per_token


def test_log_likelihoods_are_those_of_the_harness_s_own_class(loaded: LoadedModel) -> None:
    """`hf` runs the same weights by transformers alone, requests one by one, nothing shared; packed ones it can't take."""
    unpacked = load_model("embedded", packed=False)
    plain = get_model("hf")(pretrained=unpacked.model, tokenizer=loaded.tokenizer, batch_size=1, max_length=4096)
    requests = [asked(STORY, each) for each in (" a house", " the wood with her mother.", " a")]
    requests += [asked("", "The night was dark."), asked(STORY + " ", "a small town")]
    theirs, (rolling,) = plain.loglikelihood(requests), plain.loglikelihood_rolling([asked(STORY)])
    for profile, within in (("f32", 1e-4), ("f16", 5e-3)):
        ours = PackedLM(unpacked, profile, batch_size=2, max_length=4096)
        found = ours.loglikelihood(requests)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in theirs], abs=within)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in theirs]
        assert ours.loglikelihood_rolling([asked(STORY)]) == pytest.approx([rolling], abs=within)


@pytest.mark.parametrize("profile", ["turbo4", "tcq3; recent: 1 page turbo8; first: 1 page turbo8"])
def test_the_size_of_batches_changes_no_result(profile: str, loaded: LoadedModel, tasks: Path) -> None:
    names = [name for name in TASKS if name != "stratakv_needles"]
    one, many = (
        evaluated(PackedLM(loaded, profile, batch_size=size), tasks, names, limit=2)["samples"] for size in (1, 4)
    )
    for name in names:
        for left, right in zip(one[name], many[name], strict=True):
            assert left["doc_id"] == right["doc_id"]
            if name == "stratakv_copy":
                assert left["filtered_resps"] == right["filtered_resps"]
            else:
                assert numbers(left) == pytest.approx(numbers(right), abs=0.02)


def numbers(sample: dict[str, Any]) -> list[float]:
    """Log-likelihoods of a document."""
    return [float(each[0] if isinstance(each, (tuple, list)) else each) for each in sample["filtered_resps"]]


def test_answers_are_the_engine_s_greedy_text_up_to_the_stop(loaded: LoadedModel) -> None:
    ours = PackedLM(loaded, "turbo4", batch_size=2)
    prompts = [STORY, "The night was dark, and", "He opened the"]
    options = {"until": ["."], "max_gen_toks": 24}
    found = ours.generate_until([asked(prompt, options) for prompt in prompts])
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([loaded.tokenizer(prompt).input_ids])
        cache = KVCache(loaded.model.config, resolve("turbo4", loaded.geometry))
        text = generate(loaded, cache, ids, new_tokens=24, sampling=Sampling(temperature=0), emit=lambda _: None).text
        assert answer.strip() and answer.strip() == text.split(".")[0].strip()
    assert all("." not in answer for answer in found)


def test_drawn_answers_are_the_same_again_and_differ_by_place(loaded: LoadedModel) -> None:
    ours = PackedLM(loaded, "turbo4", batch_size=2)
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    torch.manual_seed(3)
    found = ours.generate_until([asked(STORY, options)] * 2)
    assert found[0] != found[1]
    assert ours.generate_until([asked(STORY, options)] * 2) == found


def test_chats_use_the_model_s_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = PackedLM(loaded, "turbo4")
    chat = [{"role": "user", "content": "Hello"}]
    with pytest.raises(UserError, match="no chat template"):
        ours.apply_chat_template(chat)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    assert ours.apply_chat_template(chat) == "[user] Hello\n[assistant]"
    assert ours.chat_template(True) == template
    assert loaded.fingerprint[:16] in ours.tokenizer_name


def test_texts_that_bring_bos_get_no_second_one(loaded: LoadedModel) -> None:
    ours = PackedLM(loaded)
    first = loaded.tokenizer.bos_token_id
    plain = ours.tok_encode("Hello")
    assert ours.tok_encode(loaded.tokenizer.bos_token + "Hello").count(first) <= 1
    assert ours.tok_encode("Hello", add_special_tokens=False) == [id_ for id_ in plain if id_ != first]


def test_texts_without_any_token_are_read_after_the_prefix(loaded: LoadedModel) -> None:
    """By a tokenizer that adds no BOS; one without any such token needs to be told."""
    ours = PackedLM(loaded, "turbo4", add_bos_token=False)
    assert ours.tok_encode("") == []
    options = {"until": [], "max_gen_toks": 4}
    assert ours.generate_until([asked("", options)]) == PackedLM(loaded, "turbo4").generate_until([asked("", options)])
    ours.tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    with pytest.raises(UserError, match="neither a first token nor one that ends a text.*give prefix_token_id=N"):
        _ = ours.prefix_token_id
    assert PackedLM(loaded, prefix_token_id=7).prefix_token_id == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained=MODEL is missing"),
        ({"pretrained": "embedded", "profil": "turbo4"}, "profil: not known here; pretrained, profile"),
        ({"pretrained": "embedded", "dtype": "float32"}, "dtype=float32: it must be f32, bf16, f16"),
        ({"pretrained": "embedded", "batch_size": 0}, "batch_size 0: it must be 1 or more"),
        ({"pretrained": "embedded", "device": "tpu"}, "device tpu: it must be cpu"),
    ],
)
def test_what_can_t_be_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackedLM(**arguments)


def test_unknown_profiles_and_ways_of_generating_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="turbo44"):
        PackedLM(loaded, "turbo44")
    ours = PackedLM(loaded, max_length=64)
    with pytest.raises(UserError, match="num_beams: 4: not known here"):
        ours.generate_until([asked(STORY, {"until": [], "max_gen_toks": 8, "num_beams": 4})])
    with pytest.raises(UserError, match="max_gen_toks 64: the model reads 64 tokens"):
        ours.generate_until([asked(STORY, {"until": [], "max_gen_toks": 64})])
