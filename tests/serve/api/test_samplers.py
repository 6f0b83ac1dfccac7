"""llama-server's names of the samplers, by HTTP: each one reaches the draw, and one that is off is inert."""

from __future__ import annotations

import httpx
import pytest

WILD = {"prompt": "The night was dark and", "n_predict": 24, "seed": 3, "temperature": 1.5, "top_k": 0, "min_p": 0.0}
ON = [
    {"typical_p": 0.2},
    {"typ_p": 0.2},
    {"top_n_sigma": 0.5},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"dynatemp_range": 1.4, "dynatemp_exponent": 0.3},
    {"dry_multiplier": 5.0, "dry_allowed_length": 0, "dry_sequence_breakers": []},
    {"samplers": ["top_k"], "top_k": 1},
    {"samplers": "kt", "top_k": 2},
]
OFF = {"typical_p": 1, "typ_p": 1.0, "top_n_sigma": -1, "xtc_probability": 0, "xtc_threshold": 0.1, "dry_base": 0}
OFF |= {
    "dynatemp_range": 0,
    "dynatemp_exponent": 2,
    "dry_multiplier": 0,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
}
OFF |= {"dry_sequence_breakers": '["\\n", ":"]'}
OFF |= {
    "samplers": [
        "penalties",
        "dry",
        "top_n_sigma",
        "top_k",
        "typ_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
        "adaptive_p",
    ]
}


def say(server, path: str = "/completion", **body) -> httpx.Response:
    return httpx.post(server.url + path, json={**WILD, **body}, timeout=60)


def test_each_reaches_the_draw(server):
    plain = say(server).json()["content"]
    assert say(server).json()["content"] == plain == say(server, **OFF).json()["content"]
    for body in ON:
        assert say(server, **body).json()["content"] != plain, body


def test_the_answer_says_what_was_used(server):
    used = say(server, xtc_probability=0.5, samplers="xt", dry_sequence_breakers=["x"]).json()["generation_settings"]
    assert used["xtc_probability"] == 0.5 and used["samplers"] == ["xtc", "temperature"]
    assert used["dry_sequence_breakers"] == ["x"] and used["dry_base"] == 1.75


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"samplers": ["top_k", "magic"]}, "samplers"),
        ({"samplers": "k?"}, "samplers"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": {"x": 1}}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": "[1"}, None),
        ({"mirostat": 1}, "mirostat"),
    ],
)
def test_what_is_wrong_is_named(server, body, param):
    answer = say(server, **body)
    if param is None:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
