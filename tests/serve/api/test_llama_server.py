"""llama-server's own endpoints on the real server, asked as its clients ask."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from servers import ALIAS, running

GREEDY = {"temperature": 0, "n_predict": 8}


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def completion(http, prompt="The night was", **body):
    answer = http.post("/completion", json={"prompt": prompt, **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http, path, body):
    with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_health_and_props(http):
    assert http.get("/health").json() == {"status": "ok"}
    props = http.get("/props").json()
    assert props["total_slots"] == 4 and props["default_generation_settings"]["n_ctx"] == 1024
    assert props["default_generation_settings"]["params"]["top_k"] == 40
    assert props["stratakv"] == {
        "profile": "turbo4",
        "bytes_per_token": 3168,
        "context": 1024,
        "fallback_template": True,
        "batching": "one forward call for all sequences of a step",
        "lost": [],
    }


def test_completion(http):
    answer = completion(http)
    assert answer["tokens_predicted"] == 8 and answer["stop"] and answer["stop_type"] == "limit"
    assert answer["tokens_evaluated"] == 4 and answer["timings"]["predicted_n"] == 8
    assert answer["generation_settings"]["temperature"] == 0 and answer["model"] == ALIAS
    assert completion(http, n_predict=0)["content"] == ""
    word = answer["content"].split()[1]
    stopped = completion(http, stop=[word])
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", word)
    assert stopped["content"] == answer["content"].partition(word)[0]


def test_stream(http):
    whole = completion(http)
    parts = events(http, "/completion", {"prompt": "The night was", "stream": True, **GREEDY})
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["stop_type"] == "limit" and sum(len(part["tokens"]) for part in parts) == 8


def test_prompts_of_tokens_and_several(http):
    ids = http.post("/tokenize", json={"content": "The night was", "add_special": True}).json()["tokens"]
    text = completion(http)["content"]
    assert completion(http, prompt=ids)["content"] == text
    assert completion(http, prompt=[*ids[:-1], http.post("/detokenize", json={"tokens": ids[-1:]}).json()["content"]])
    assert [each["content"] for each in completion(http, prompt=["The night was", ids])] == [text, text]


def test_probabilities(http):
    answer = completion(http, n_probs=3, return_tokens=True)
    assert [each["id"] for each in answer["completion_probabilities"]] == answer["tokens"]
    assert all(len(each["top_logprobs"]) == 3 for each in answer["completion_probabilities"])


def test_probabilities_after_the_samplers(http):
    sampled = {
        "n_probs": 5,
        "post_sampling_probs": True,
        "temperature": 1.0,
        "seed": 1,
        "top_k": 3,
        "min_p": 0,
        "top_p": 1,
    }
    for each in completion(http, **sampled)["completion_probabilities"]:
        best = each["top_probs"]
        assert len(best) == 3 and sum(other["prob"] for other in best) == pytest.approx(1)
        assert each["prob"] in [other["prob"] for other in best] and "logprob" not in each
    (one,) = completion(http, n_probs=3, post_sampling_probs=True, n_predict=1)["completion_probabilities"]
    assert one["prob"] == 1 and [other["id"] for other in one["top_probs"]] == [one["id"]]  # greedy: one is left


def test_grammars(http):
    assert completion(http, grammar='root ::= "yes" | "no"')["content"] in ("yes", "no")
    schema = {"type": "object", "properties": {"c": {"const": 7}}, "required": ["c"], "additionalProperties": False}
    assert json.loads(completion(http, json_schema=schema, n_predict=20)["content"]) == {"c": 7}
    wrong = http.post("/completion", json={"prompt": "x", "grammar": "root ::= ("})
    assert wrong.status_code == 400


def test_tokenize_and_back(http):
    text = "The Düsseldorf night — was 夜."
    for options in ({}, {"add_special": True}):
        ids = http.post("/tokenize", json={"content": text, **options}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": ids}).json()["content"].removeprefix("<|bos|>") == text
    pieces = http.post("/tokenize", json={"content": "The night", "with_pieces": True}).json()["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "The night"
    plain = http.post("/tokenize", json={"content": "<|eos|>", "parse_special": False}).json()["tokens"]
    assert len(plain) > len(http.post("/tokenize", json={"content": "<|eos|>"}).json()["tokens"]) == 1


def test_apply_template(http):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = http.post("/apply-template", json={"messages": messages}).json()
    assert answer == {"prompt": "System: Be brief.\n\nUser: Hi\n\nAssistant:"}


def test_slots(http, server):
    prompt = "The castle stood on a rock above the river, and nobody went there. " * 20
    first = completion(http, prompt=prompt, id_slot=1, n_predict=2)
    assert first["id_slot"] == 1 and first["tokens_evaluated"] > 256
    listed = http.get("/slots").json()
    assert [slot["id"] for slot in listed] == [0, 1, 2, 3] and not any(slot["is_processing"] for slot in listed)

    saved = http.post("/slots/1?action=save", json={"filename": "castle.bin"}).json()
    assert saved["n_saved"] >= 256 and saved["n_written"] > saved["n_saved"] * 3168
    assert http.post("/slots/1?action=erase").status_code == 200
    assert completion(http, prompt=prompt, id_slot=1, n_predict=2)["timings"]["cache_n"] == 0
    assert http.post("/slots/1?action=erase").status_code == 200
    restored = http.post("/slots/1?action=restore", json={"filename": "castle.bin"}).json()
    assert restored["n_restored"] == saved["n_saved"] and restored["n_read"] == saved["n_written"]
    again = completion(http, prompt=prompt, id_slot=1, n_predict=2)
    assert again["timings"]["cache_n"] >= 256 and again["content"] == first["content"]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/passwd", ".hidden", "..", "", "a\x00b", "a" * 129, "C:\\x", "nul l", "ä"]
)
@pytest.mark.parametrize("action", ["save", "restore"])
def test_names_that_are_no_plain_file_names(http, action, name):
    answer = http.post(f"/slots/0?action={action}", json={"filename": name})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "filename"


def test_slots_that_are_not_there(http):
    assert http.post("/slots/9?action=erase").status_code == 400
    assert http.post("/slots/0?action=steal").status_code == 400
    assert http.post("/slots/0?action=restore", json={"filename": "missing"}).status_code == 404


def test_metrics(http):
    def counted(name: str) -> float:
        text = http.get("/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    before = counted("llamacpp:tokens_predicted_total"), counted('stratakv_requests_total{outcome="finished"}')
    completion(http)
    assert counted("llamacpp:tokens_predicted_total") == before[0] + 8
    assert counted('stratakv_requests_total{outcome="finished"}') == before[1] + 1
    text = http.get("/metrics").text
    for line in text.splitlines():  # the format: HELP, TYPE, then samples of that name
        assert re.fullmatch(
            r"# (HELP|TYPE) [a-zA-Z_:]+ .+|[a-zA-Z_:]+(\{\w+=\"\w+\"(,\w+=\"\w+\")*\})? [0-9.e+-]+", line
        ), line
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 15
    assert all(
        name.endswith("_total") for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.M) if kind == "counter"
    )


def test_metrics_of_spans():
    """Of the layer that has most; pages of all three kinds."""
    profile = "0: f16; 1: turbo4, recent 3 pages turbo8; rest: turbo4; recent: 1 page turbo8; first: 2 pages turbo8"
    with running(profile=profile, metrics=True) as server:
        prompt = {"prompt": "It was the best of times. " * 120, "n_predict": 1}
        httpx.post(f"{server.url}/completion", json=prompt, timeout=60)
        server.wait_idle()
        text = httpx.get(f"{server.url}/metrics").text
        kinds = {kind.kind: kind for kind in server.engine.snapshot().kinds}
    assert 'stratakv_cache_span_pages{span="recent"} 3\n' in text
    assert 'stratakv_cache_span_pages{span="first"} 2\n' in text
    assert set(kinds) == {"whole", "fine", "sealed"} and all(kind.cached for kind in kinds.values())
    for name, kind in kinds.items():
        for state in ("used", "cached", "free"):
            sample = f'stratakv_cache_pages_by_kind{{kind="{name}",state="{state}"}} {getattr(kind, state)}\n'
            assert sample in text, sample


def test_unknown_places(http):
    assert http.get("/nope").json()["error"]["type"] == "not_found_error"
    assert http.get("/completion").status_code == 405
    assert http.get("/web/../../cli/serve.py").status_code == 404
    assert http.get("/web/%2e%2e%2fapi%2fapp.py").status_code == 404
