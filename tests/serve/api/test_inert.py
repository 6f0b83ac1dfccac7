"""What clients send though it changes nothing is taken in all families; what would change something is refused by its name."""

from __future__ import annotations

import httpx
import pytest
from servers import ALIAS

USER = {"role": "user", "content": "Who goes there?"}
# As SillyTavern, Open WebUI, LangChain and others send it with every request
OFF = {
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "mirostat_mode": 0, "tfs_z": 1, "tfs": 1.0, "top_a": 0,
    "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 0,
    "dry_sequence_breakers": '["\\n", ":"]', "xtc_probability": 0, "xtc_threshold": 0.1, "dynatemp_range": 0,
    "dynatemp_exponent": 1, "typ_p": 1, "typical_p": 1.0, "typical": 1, "top_n_sigma": -1, "nsigma": -1, "min_keep": 0,
    "smoothing_factor": 0, "smoothing_curve": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "skew": 0, "penalty_alpha": 0,
    "num_beams": 1, "length_penalty": 1, "early_stopping": False, "do_sample": True, "add_bos_token": True,
    "ban_eos_token": False, "skip_special_tokens": True, "guidance_scale": 1, "negative_prompt": "", "best_of": 1,
    "return_progress": False, "image_data": [], "lora": [], "n_keep": 0, "n_discard": 0, "n_cache_reuse": 256,
    "speculative.n_max": 16, "custom_token_bans": "", "banned_strings": [], "truncation_length": 1024,
    "repetition_penalty": 1, "repetition_penalty_range": 64, "sampler_seed": -1, "penalize_nl": False, "functions": None,
    "anything": None, "min_tokens": 0, "stopping_strings": ["\n\n\n"],
}  # fmt: skip
ON = [
    ("mirostat", 2), ("mirostat_mode", 1), ("tfs_z", 0.9), ("top_a", 0.1), ("best_of", 2), ("image_data", ["x"]),
    ("return_progress", True), ("lora", [{"id": 0}]), ("smoothing_factor", 0.2), ("num_beams", 4), ("min_tokens", 5),
    ("banned_strings", ["x"]), ("negative_prompt", "bad"), ("nonsense", 0),
]  # fmt: skip
FAMILIES = [
    ("/completion", {"prompt": "The night", "n_predict": 2}),
    ("/completions", {"prompt": "The night", "n_predict": 2}),
    ("/v1/completions", {"prompt": "The night", "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": [USER], "max_tokens": 2}),
    ("/api/generate", {"model": ALIAS, "prompt": "The night", "stream": False}),
    ("/api/chat", {"model": ALIAS, "messages": [USER], "stream": False}),
]


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def ask(http, path, body, **sampling):
    if path.startswith("/api/"):
        return http.post(path, json={**body, "options": {"num_predict": 2, **sampling}})
    return http.post(path, json={**body, **sampling})


@pytest.mark.parametrize(("path", "body"), FAMILIES, ids=[path for path, _ in FAMILIES])
def test_samplers_that_are_off(http, path, body):
    assert ask(http, path, body, **OFF).status_code == 200
    for name, value in ON:
        answer = ask(http, path, body, **{name: value})
        assert answer.status_code == 400, name
        assert name.removesuffix("_mode") in answer.text, answer.text


def test_other_names_say_the_same(http):
    def text(**sampling):
        return http.post("/v1/completions", json={"prompt": "The night", "max_tokens": 12, **sampling}).json()[
            "choices"
        ][0]["text"]

    wild = {"temperature": 1.5, "top_k": 0, "min_p": 0}
    assert text(seed=3, **wild) == text(sampler_seed=3, **wild) == text(seed=3, sampler_seed=4, **wild)
    assert text(temperature=0, repeat_penalty=1.7) == text(temperature=0, repetition_penalty=1.7) != text(temperature=0)


def test_completions_without_v1_is_llama_servers(http):
    answer = http.post("/completions", json={"prompt": "The night", "n_predict": 2}).json()
    assert answer["tokens_predicted"] == 2 and "content" in answer and "choices" not in answer


def test_wishes_that_change_nothing_are_taken(http):
    message = {
        "role": "assistant", "content": [{"type": "text", "text": "Hm.", "cache_control": {"type": "ephemeral"}}],
        "annotations": [], "audio": None, "parsed": None, "reasoning": "x", "cache_control": {"type": "ephemeral"},
        "tool_calls": [{"index": 0, "id": "1", "type": "function",
                        "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}],
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "f", "cache": 1}, "cache_control": {"type": "ephemeral"}}
    result = {"role": "tool", "tool_call_id": "1", "content": "x", "name": "f", "status": "success"}
    body = {
        "messages": [USER, message, result], "tools": [tool], "max_tokens": 1, "reasoning_effort": "none",
        "reasoning_format": "none", "thinking": {"type": "disabled"}, "verbosity": "low", "store": True,
        "prompt_cache_retention": "24h", "service_tier": "auto", "samplers": [], "timings_per_token": True,
        "response_fields": ["content"], "t_max_predict_ms": 1000, "post_sampling_probs": False, "n_probs": 0,
    }  # fmt: skip
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    told = {"model": ALIAS, "messages": [{**USER, "cache": 1}], "truncate": True, "shift": True, "think": False,
            "stream": False, "options": {"num_predict": 1, "num_gqa": 1, "f16_kv": True, "penalize_newline": False}}  # fmt: skip
    assert http.post("/api/chat", json=told).status_code == 200


def test_response_fields(http):
    fields = ["content", "generation_settings/n_predict", "nothing/here"]
    answer = http.post("/completion", json={"prompt": "The night", "n_predict": 2, "response_fields": fields}).json()
    assert set(answer) == {"content", "generation_settings/n_predict"} and answer["generation_settings/n_predict"] == 2


def test_the_time_of_an_answer(http):
    """It ends at the first line after that time; without a line break it goes on."""
    body = {"prompt": "x", "n_predict": 300, "t_max_predict_ms": 1, "temperature": 0, "ignore_eos": True}
    lines = http.post("/completion", json={**body, "grammar": 'root ::= ("a" | "\\n")+'}).json()
    assert lines["tokens_predicted"] < 300 or "\n" not in lines["content"]
    broken = http.post("/completion", json={**body, "grammar": 'root ::= "a" "\\n" "b"+'}).json()
    assert broken["tokens_predicted"] < 20 and "\n" in broken["content"]
    one = http.post("/completion", json={**body, "grammar": 'root ::= "b"+', "n_predict": 60}).json()
    assert one["tokens_predicted"] == 60


def test_ollama_leaves_out_what_came_first(http):
    long = [{"role": "system", "content": "Be brief."}] + [{"role": "user", "content": "castle " * 150}] * 8 + [USER]
    body = {"model": ALIAS, "messages": long, "stream": False, "options": {"num_predict": 1}}
    assert http.post("/api/chat", json=body).status_code == 400
    assert http.post("/api/chat", json={**body, "truncate": True}).json()["prompt_eval_count"] < 1024
    body = {"model": ALIAS, "prompt": "castle " * 1500, "stream": False, "options": {"num_predict": 1, "num_keep": 5}}
    assert http.post("/api/generate", json=body).status_code == 400
    answer = http.post("/api/generate", json={**body, "truncate": True}).json()
    assert answer["prompt_eval_count"] == 1023
