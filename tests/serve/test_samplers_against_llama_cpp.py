"""Each sampler, and chains of them, give llama.cpp's own distributions on fixed logits."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from llama_files import llama

from stratakv.assets import embedded_model
from stratakv.engine.load import LoadedModel
from stratakv.serve.samplers import SAMPLERS, SamplingParams
from stratakv.serve.sampling import Sampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python (`make gguf`)"),
]
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5}
WILD = {"top_n_sigma": 2.5, "typical_p": 0.9, "dynatemp_range": 0.5, "dynatemp_exponent": 0.7, "repeat_penalty": 1.3}
WILD |= {"dry_multiplier": 0.8, "xtc_probability": 1.0, "xtc_threshold": 0.08}


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Any]:
    """llama.cpp's of the embedded model; no weights."""
    module = llama()
    parameters = module.llama_model_default_params()
    parameters.vocab_only = True
    model = module.llama_model_load_from_file(str(embedded_model()).encode(), parameters)
    yield module.llama_model_get_vocab(model)
    module.llama_model_free(model)


def theirs(
    vocabulary: Any, params: SamplingParams, logits: torch.Tensor, tokens: Sequence[int], seed: int = 1
) -> dict[int, float]:
    """Token -> probability after llama.cpp's chain; tokens: those accepted before."""
    module = llama()
    breakers = [text.encode() for text in params.dry_sequence_breakers]
    texts = (ctypes.c_char_p * len(breakers))(*breakers)
    context = len(tokens) + 1  # what -1 means
    last = [context if n < 0 else n for n in (params.repeat_last_n, params.dry_penalty_last_n)]
    penalties = (last[0], params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
    dry = (params.dry_multiplier, params.dry_base, params.dry_allowed_length, last[1], texts, len(breakers))
    make = {
        "penalties": lambda: module.llama_sampler_init_penalties(len(logits), *penalties),
        "dry": lambda: module.llama_sampler_init_dry(vocabulary, *dry),
        "top_n_sigma": lambda: module.llama_sampler_init_top_n_sigma(params.top_n_sigma),
        "top_k": lambda: module.llama_sampler_init_top_k(params.top_k),
        "typ_p": lambda: module.llama_sampler_init_typical(params.typical_p, 0),
        "top_p": lambda: module.llama_sampler_init_top_p(params.top_p, 0),
        "min_p": lambda: module.llama_sampler_init_min_p(params.min_p, 0),
        "xtc": lambda: module.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 0, seed),
        "temperature": lambda: module.llama_sampler_init_temp_ext(
            params.temperature, params.dynatemp_range, params.dynatemp_exponent
        ),
    }
    data = (module.llama_token_data * len(logits))(
        *(module.llama_token_data(i, value, 0.0) for i, value in enumerate(logits.tolist()))
    )
    array = module.llama_token_data_array(data, len(logits), -1, False)
    for name in params.samplers:
        sampler = make[name]()
        for token in tokens:
            module.llama_sampler_accept(sampler, token)
        module.llama_sampler_apply(sampler, ctypes.byref(array))
        module.llama_sampler_free(sampler)
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    values = np.array(list(left.values()), dtype=np.float64)
    shares = np.exp(values - values.max())
    return dict(zip(left, (shares / shares.sum()).tolist(), strict=True))


def ours(tokenizer: Any, params: SamplingParams, logits: torch.Tensor, tokens: Sequence[int]) -> dict[int, float]:
    sampler = Sampler(params, tokenizer)
    sampler.draw(logits, tokens)
    found = sampler.candidates
    assert found is not None
    return dict(zip(found.ids.tolist(), found.probabilities().tolist(), strict=True))


def check(loaded: LoadedModel, vocabulary: Any, params: SamplingParams, logits: torch.Tensor, tokens: list[int]) -> int:
    expected = theirs(vocabulary, params, logits, tokens)
    found = ours(loaded.tokenizer, params, logits, tokens)
    # llama.cpp leaves tokens with a logit of -inf among the others, and has no numbers below float32's
    expected = {token: share for token, share in expected.items() if share > 1e-30}
    found = {token: share for token, share in found.items() if share > 1e-30}
    assert found.keys() == expected.keys()
    assert [found[token] for token in expected] == pytest.approx(list(expected.values()), rel=2e-4, abs=1e-7)
    return len(found)


def fixed_logits(seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(4096, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.1}, {"typical_p": 0.3}, {"typical_p": 0.95}, {"top_n_sigma": 1.0},
        {"top_n_sigma": 0.1}, {"temperature": 0.3}, {"temperature": 0.0}, {"temperature": 4.0},
        {"dynatemp_range": 0.5}, {"dynatemp_range": 3.0, "dynatemp_exponent": 0.4}, {"dynatemp_range": 0.7, "temperature": 0.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"xtc_probability": 1.0, "xtc_threshold": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.6}, {"xtc_probability": 1.0, "xtc_threshold": 0.01, "temperature": 0.0},
        {"repeat_penalty": 1.5, "repeat_last_n": -1}, {"presence_penalty": 0.5, "frequency_penalty": 1.5, "repeat_last_n": 20},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {**WILD, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {"samplers": ()}, {"samplers": ("temperature",), "temperature": 2.0, "top_k": 5},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_distributions(loaded: LoadedModel, vocabulary: Any, settings: dict[str, Any], seed: int) -> None:
    params = SamplingParams(**{**OFF, **settings})
    tokens = torch.randint(0, 4096, (60,), generator=torch.Generator().manual_seed(seed)).tolist() * 2
    check(loaded, vocabulary, params, fixed_logits(seed), tokens)


@pytest.mark.parametrize("seed", range(8))
def test_any_order(loaded: LoadedModel, vocabulary: Any, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(SAMPLERS).tolist()
    first, second = sorted((order.index("typ_p"), order.index("top_n_sigma")))
    order[first], order[second] = (
        "typ_p",
        "top_n_sigma",
    )  # the other way round llama.cpp takes 0 * log(0), nan, for an entropy
    settings = {**OFF, **WILD, "top_k": 60, "top_p": 0.97, "min_p": 0.01, "temperature": 1.4, "samplers": tuple(order)}
    tokens = torch.randint(0, 50, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert check(loaded, vocabulary, SamplingParams(**settings), fixed_logits(seed, 1.5), tokens) > 1


TEXT = 'She said: "The night was dark and the road was long. The night was dark and the road'


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"dry_base": 1.0}, {"dry_base": 3.0, "dry_allowed_length": 4}, {"dry_allowed_length": 0}, {"dry_allowed_length": 1},
        {"dry_penalty_last_n": 12}, {"dry_penalty_last_n": 0}, {"dry_sequence_breakers": ()},
        {"dry_sequence_breakers": ("dark and",)}, {"dry_sequence_breakers": ("rk and", "e", ".")},
        {"dry_sequence_breakers": (" the", "xyz", "oad")},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "text", [TEXT, TEXT * 3, "ha" * 80, "Bob: hi\nAnn: hi\nBob:"], ids=["night", "thrice", "ha", "names"]
)
def test_dry(loaded: LoadedModel, vocabulary: Any, settings: dict[str, Any], text: str) -> None:
    tokens = loaded.tokenizer(text, add_special_tokens=False).input_ids
    params = SamplingParams(**{**OFF, "dry_multiplier": 0.8, **settings})
    check(loaded, vocabulary, params, fixed_logits(0), tokens)


def test_dry_with_random_tokens(loaded: LoadedModel, vocabulary: Any) -> None:
    """Few different tokens: repetitions of all lengths, cut by breakers of several tokens."""
    letters = loaded.tokenizer("a b c d : * ab cd", add_special_tokens=False).input_ids
    random = np.random.default_rng(0)
    for _ in range(150):
        tokens = random.choice(letters[: random.integers(2, len(letters))], random.integers(1, 60)).tolist()
        some = [str(text) for text in random.choice(["a b", "b c d", ":", "d", "c :"], random.integers(0, 4))]
        params = SamplingParams(
            **OFF, dry_multiplier=1.0, dry_allowed_length=int(random.integers(0, 4)), dry_sequence_breakers=tuple(some)
        )  # fmt: skip
        check(loaded, vocabulary, params, fixed_logits(1), tokens)
