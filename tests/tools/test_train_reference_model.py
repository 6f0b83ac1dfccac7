from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from train_reference_model import make_model
from training.loop import new_model, optimizers, train
from training.recipes import RECIPES, Phase, Recipe
from training.text import documents, token_row, train_tokenizer, windows
from transformers import AutoModelForCausalLM, AutoTokenizer

from stratakv.assets import tuning_text
from stratakv.engine.cache.geometry import geometry_of

CPU = torch.device("cpu")
TINY = Recipe(
    layers=2,
    hidden=64,
    mlp=96,
    heads=2,
    kv_heads=1,
    head_dim=32,
    vocabulary=400,
    context=128,
    phases=(Phase(20, 4, 48), Phase(6, 2, 96)),
    warmup=4,
    decay=6,
)


SLIDING = replace(TINY, family="gemma3", window=16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = tuning_text().read_text(encoding="utf-8")
    (folder / "castle.txt").write_text(text[:30_000], encoding="utf-8")
    (folder / "pieces.txt").write_text('<doc id="1">\none\n</doc>\n<doc id="2">\ntwo\n</doc>\n', encoding="utf-8")
    (folder / "tales.txt").write_text("three\n<|endoftext|>\nfour", encoding="utf-8")
    (folder / "Dracula.txt").write_text("held out", encoding="utf-8")
    (folder / "wikitext-2-raw-test.txt").write_text("held out", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def row(corpus: Path) -> torch.Tensor:
    texts = documents(corpus)
    return token_row(train_tokenizer(texts, TINY.vocabulary), texts)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_documents_are_separated_and_held_out_texts_left_out(corpus: Path) -> None:
    assert documents(corpus)[1:] == ["one", "two", "three", "four"]


def test_a_corpus_of_held_out_texts_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dracula.txt").write_text("held out", encoding="utf-8")
    with pytest.raises(ValueError, match="no .txt file"):
        documents(tmp_path)


def test_every_document_starts_with_bos(corpus: Path, row: torch.Tensor) -> None:
    assert row[0] == 0
    assert (row == 0).sum() == len(documents(corpus))
    assert row.max() < TINY.vocabulary


def test_windows_depend_on_seed_and_step_alone(row: torch.Tensor) -> None:
    first = windows(row, 3, 4, 16, seed=1)
    assert first.shape == (4, 17)
    assert torch.equal(first, windows(row, 3, 4, 16, seed=1))
    assert not torch.equal(first, windows(row, 4, 4, 16, seed=1))
    assert not torch.equal(first, windows(row, 3, 4, 16, seed=2))
    with pytest.raises(ValueError, match="a window needs"):
        windows(row[:16], 0, 1, 16, seed=0)


def test_rates_warm_up_stay_and_fall_to_nothing() -> None:
    recipe = RECIPES["strata-8m"]
    assert recipe.steps == 1500
    assert recipe.rate(0) == pytest.approx(1 / 60)
    assert recipe.rate(59) == recipe.rate(600) == recipe.rate(1200) == 1
    assert recipe.rate(1350) == pytest.approx(0.5)
    assert recipe.rate(1499) == pytest.approx(1 / 300)
    assert [recipe.phase(step).tokens for step in (0, 1199, 1200, 1499)] == [512, 512, 2048, 2048]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("strata-8m", 7.87), ("strata-33m", 33.0), ("strata-slide-3m", 3.48), ("strata-mha-3m", 3.08)],
)
def test_recipes_have_the_sizes_that_are_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(RECIPES[name].config())
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.005)


def test_a_recipe_with_a_window_slides_in_every_other_layer() -> None:
    geometry = geometry_of(RECIPES["strata-slide-3m"].config())
    assert [layer.window for layer in geometry.kv_layers] == [128, None] * 6
    assert {(layer.head_dim, layer.kv_heads, layer.q_heads) for layer in geometry.kv_layers} == {((128, 128), 1, 2)}


def test_a_recipe_without_grouped_queries_has_as_many_kv_heads() -> None:
    geometry = geometry_of(RECIPES["strata-mha-3m"].config())
    assert [layer.role for layer in geometry.kv_layers] == ["full"] * 12
    assert {(layer.head_dim, layer.kv_heads, layer.q_heads) for layer in geometry.kv_layers} == {((64, 64), 2, 2)}


@pytest.mark.parametrize("recipe", [TINY, SLIDING], ids=["llama", "gemma3"])
def test_every_weight_has_one_optimizer(recipe: Recipe) -> None:
    model = new_model(recipe, CPU)
    muon, adamw = ([*group["params"]] for optimizer in optimizers(model, recipe) for group in optimizer.param_groups)
    assert len(muon) == 7 * recipe.layers
    assert {id(p) for p in muon} | {id(p) for p in adamw} == {id(p) for p in model.parameters()}
    assert len(muon) + len(adamw) == len(list(model.parameters()))


@pytest.mark.parametrize("recipe", [TINY, SLIDING], ids=["llama", "gemma3"])
def test_training_learns_and_its_result_loads(recipe: Recipe, corpus: Path, tmp_path: Path) -> None:
    make_model(recipe, corpus, tmp_path, CPU)
    losses = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["losses"]
    assert len(losses) == recipe.steps
    assert sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The castle stood", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "The castle stood"
    assert model(ids).logits.isfinite().all()


def test_a_tokenizer_can_be_given(corpus: Path, tmp_path: Path) -> None:
    train_tokenizer(["given " * 50], TINY.vocabulary).save(str(tmp_path / "given.json"))
    with pytest.raises(ValueError, match=r"given\.json has 2\d\d entries, the recipe 400"):
        make_model(TINY, corpus, tmp_path / "model", CPU, tokenizer=tmp_path / "given.json")
    train_tokenizer([tuning_text().read_text(encoding="utf-8")], TINY.vocabulary).save(str(tmp_path / "given.json"))
    make_model(TINY, corpus, tmp_path / "model", CPU, tokenizer=tmp_path / "given.json", stop_after=1)
    given = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "The castle stood"
    assert given(text).input_ids == Tokenizer.from_file(str(tmp_path / "given.json")).encode(text).ids


def test_a_resumed_run_ends_with_the_same_weights(row: torch.Tensor, tmp_path: Path) -> None:
    recipe = replace(TINY, phases=(Phase(4, 2, 32), Phase(3, 2, 64)), decay=3)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, losses = train(recipe, row, tmp_path / "whole", device=CPU)
    train(recipe, row, tmp_path / "parts", device=CPU, stop_after=5)
    parts, resumed_losses = train(recipe, row, tmp_path / "parts", device=CPU)
    assert resumed_losses == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(recipe, seed=1), row, tmp_path / "parts", device=CPU)
