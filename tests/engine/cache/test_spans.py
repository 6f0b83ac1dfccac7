"""Layers with spans: the rule by position, whatever the pieces; sealed bytes; crops and beams; masks; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waiting import no_waiting
from tiny_models import tiny_model
from transformers import DynamicCache

from stratakv import KVCache, UserError, use
from stratakv.engine.cache.layers import PackedLayer, PackedSlidingLayer
from stratakv.engine.cache.sealing import Seals
from stratakv.engine.cache.steps import Steps
from stratakv.kernels.choice import TORCH, kernel_for, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.kernel import Kernel, Options
from stratakv.kernels.spans import due, next_due
from stratakv.kernels.torch_kernel import dense_attention
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.profile.spans import Spans

KERNELS: list[Kernel] = [*(CpuKernel(name, True) for name in kernel_names() if name != "torch"), TORCH]
every = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
RULES = [Spans(1, first=1), Spans(2), Spans(0, first=2)]
rules = pytest.mark.parametrize("spans", RULES, ids=lambda spans: f"recent {spans.recent}, first {spans.first}")
TOKENS, HEADS, DIM = 700, 2, 64


def states(
    batch: int = 1, tokens: int = TOKENS, heads: int = HEADS, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(batch, heads, tokens, DIM, generator=generator) for _ in range(2))
    return k, v


def spanned(
    spans: Spans, window: int | None = None, fine: str = "turbo8", own: str = "turbo4", turn: float = 1.0
) -> Any:
    seals = Seals(spans, kv_type(own), kv_type(own), turn)
    types = kv_type(fine), kv_type(fine)
    if window is None:
        return PackedLayer("layer 3", *types, seals=seals)
    return PackedSlidingLayer("layer 3", *types, window, seals=seals)


def fill(layer: Any, k: torch.Tensor, v: torch.Tensor, size: int) -> None:
    for begin in range(0, k.shape[2], size):
        layer.update(k[:, :, begin : begin + size], v[:, :, begin : begin + size])


def attend(layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: int, options: Options) -> torch.Tensor:
    """[batch, q_heads, tokens, dim], the tokens given in pieces."""
    outs = []
    for begin in range(0, q.shape[2], size):
        here = slice(begin, begin + size)
        key, _ = layer.update(k[:, :, here], v[:, :, here])
        rows = q[:, :, here].transpose(1, 2)
        out = key.placed.attend(rows.flatten(0, 1), key.placed.causal(), options)
        outs.append(out.view(*rows.shape).transpose(1, 2))
    return torch.cat(outs, dim=2)


def reference(
    spans: Spans, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, window: int | None
) -> torch.Tensor:
    """One softmax a block of queries over K and V decoded page by page, by the rule."""
    fine, own = kv_type("turbo8"), kv_type("turbo4")
    recent = [fine.decode_exactly(fine.encode(x), DIM) for x in (k, v)]
    old = [own.decode(own.encode(x), DIM) for x in recent]
    tokens, outs = k.shape[2], []
    position = torch.arange(tokens)
    for begin in range(0, tokens, PAGE_TOKENS):
        end = min(begin + PAGE_TOKENS, tokens)
        is_fine = (position // PAGE_TOKENS < spans.first) | (
            position // PAGE_TOKENS >= begin // PAGE_TOKENS - spans.recent
        )
        mixed = [torch.where(is_fine[:, None], new, sealed) for new, sealed in zip(recent, old, strict=True)]
        asked = torch.arange(begin, end)[:, None]
        mask = (position <= asked) & (asked - position < (window or tokens))
        outs.append(dense_attention(q[:, :, begin:end], *mixed, mask[None, None], False, options, lse=True)[0])
    return torch.cat(outs, dim=2)


@every
@rules
@pytest.mark.parametrize(
    ("window", "options"),
    [(None, Options(0.2)), (400, Options(0.2)), (None, Options(0.2, 3.0, torch.linspace(-1, 2, 4)))],
    ids=["full", "sliding", "sinks and softcap"],
)
def test_attention_is_one_softmax_over_the_mixture(
    kernel: Kernel, spans: Spans, window: int | None, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("layers", "sealing"):
        monkeypatch.setattr(f"stratakv.engine.cache.{home}.kernel_for", lambda layout, device: kernel)
    if window is not None:
        spans = Spans(max(spans.recent, 1))  # sliding layers have no first span
    (k, v), (q, _) = states(2), states(2, heads=4, seed=1)
    expected = reference(spans, q, k, v, options, window)
    for size in (TOKENS, 250, 9):
        out = attend(spanned(spans, window), q, k, v, size, options)
        error = (out - expected).norm() / expected.norm()
        assert error < 1e-3, size


@rules
@pytest.mark.parametrize("name", kernel_names())
def test_bytes_depend_on_no_piece(spans: Spans, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", name)
    k, v = states()
    held = []
    for size, turn in ((TOKENS, 1.0), (1, 0.3), (7, 1.0), (128, 1.0), (512, 0.1), (129, 0.6)):
        layer = spanned(spans, turn=turn)
        fill(layer, k, v, size)
        sealed = layer.sealed.tables
        assert layer.written.indices == [i for i in range(6) if i < spans.first or i >= 5 - spans.recent]
        assert (
            set(range(spans.first, 5 - spans.recent))
            <= set(sealed.indices)
            <= set(range(spans.first, 6 - spans.recent))
        )
        pages = {("fine", i): layer.pool.read(torch.tensor(layer.written.column(i))) for i in layer.written.indices}
        pages[("fine", 5)] = pages[("fine", 5)][:, :, : TOKENS % PAGE_TOKENS]
        pages |= {
            ("sealed", i): sealed.pool.read(torch.tensor(sealed.column(i)))
            for i in range(spans.first, 5 - spans.recent)
        }
        held.append(pages)
    for other in held[1:]:
        assert other.keys() == held[0].keys()
        assert all(torch.equal(other[which], held[0][which]) for which in held[0])


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.parametrize("window", [None, 300], ids=["full", "sliding"])
def test_a_step_has_fine_pages_of_its_own_tokens_only(size: int, window: int | None) -> None:
    """Beside those of the spans: what was sealed, or left the window, before it gets no fine page again."""
    k, v = states(tokens=2048)
    for spans in (Spans(0, first=1), Spans(1, first=1)) if window is None else (Spans(1),):
        layer = spanned(spans, window)
        for begin in range(0, 2048, size):
            here = slice(begin, begin + size)
            key, _ = layer.update(k[:, :, here], v[:, :, here])
            fine = key.placed.mixture.fine
            assert len(fine.indices) <= spans.first + spans.recent + (window is not None) + size // PAGE_TOKENS


@rules
def test_a_place_that_nothing_was_stored_in_seals_nothing(spans: Spans) -> None:
    """A compiled step asks all layers for a place; where one has none, or the step fails, another may be tried."""
    k, v = states()
    layer, expected = spanned(spans), spanned(spans)
    fill(expected, k, v, 200)
    for begin in range(0, TOKENS, 200):
        assert begin or layer.place(1, 500) is None
        layer.place(1, 500)
        here = slice(begin, begin + 200)
        layer.update(k[:, :, here], v[:, :, here])
    ours, theirs = layer.sealed.tables, expected.sealed.tables
    assert ours.indices == theirs.indices
    for index in ours.indices:
        pages = [each.pool.read(torch.tensor(each.column(index))) for each in (ours, theirs)]
        assert torch.equal(*pages)


def test_sealed_bytes_are_the_types_own_of_fine_values() -> None:
    k, v = states()
    layer = spanned(Spans(1, first=1))
    fill(layer, k, v, 300)
    fine, own = kv_type("turbo8"), kv_type("turbo4")
    expected = [own.encode(fine.decode_exactly(fine.encode(x[0, :, 256:384]), DIM)) for x in (k, v)]
    read = layer.sealed.tables.pool.read(torch.tensor(layer.sealed.tables.column(2)))[0]
    assert torch.equal(read, torch.cat(expected, dim=-1))


@given(st.sampled_from(RULES), st.integers(0, 40), st.integers(1, 30), st.sampled_from([1, 12, 30]))
def test_when_the_next_page_is_due(spans: Spans, pages: int, layer: int, layers: int) -> None:
    end, turn = spans.first + pages, min(layer / layers, 1.0)
    tokens = next_due(spans, end, turn)
    assert due(spans, tokens - 1, turn) == end < due(spans, tokens, turn)


def test_sealing_is_spread_over_a_page_s_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use(tiny_model("llama"))
    cache = KVCache(model.config, "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8")
    sealed: list[int] = []
    kernel = type(kernel_for(PageLayout(kv_type("turbo4"), kv_type("turbo4"), DIM, DIM, HEADS), torch.device("cpu")))
    real = kernel.convert
    monkeypatch.setattr(kernel, "convert", lambda *given: (sealed.append(len(given[3])), real(*given)))
    most = 0
    with torch.no_grad():
        for _ in range(600):
            sealed.clear()
            model(torch.tensor([[5]]), past_key_values=cache)
            most = max(most, sum(sealed))
            assert all(len(layer.written.indices) <= 3 for layer in cache.layers)
    assert most == 1  # of 4 layers


@pytest.mark.parametrize("precise", ["0", "1"])
@torch.no_grad()
def test_a_prompt_in_pieces_gives_the_same_logits(precise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_PRECISE", precise)
    model = use(tiny_model("llama"))
    ids = torch.randint(3, 97, (1, 500), generator=torch.Generator().manual_seed(2))

    def logits(size: int) -> torch.Tensor:
        cache = KVCache(model.config, "rest: turbo3; recent: 1 page turbo8; first: 1 page turbo8")
        return torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(size, dim=1)], dim=1)

    whole = logits(500)
    for size in (1, 7, 128, 400):
        found = logits(size)
        assert (found - whole).norm() / whole.norm() < (1e-2 if precise == "0" and size <= 8 else 1e-3), size


F32, F16 = kv_type("f32"), kv_type("f16")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kernel=st.sampled_from([kernel_names()[0], "torch"]), spans=st.sampled_from(RULES))
def test_a_history_of_updates_crops_and_beams(data: st.DataObject, kernel: str, spans: Spans) -> None:
    """Fine pages in f32, sealed ones in f16: what is read tells which was which, and which was sealed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRATAKV_KERNEL", kernel)
        layer = spanned(spans, fine="f32", own="f16")
        shadow, _ = states(2, 150)

        def settled() -> None:
            out = slice(spans.first * PAGE_TOKENS, max(0, shadow.shape[2] // PAGE_TOKENS - spans.recent) * PAGE_TOKENS)
            shadow[:, :, out] = shadow[:, :, out].half().float()

        layer.update(shadow, -shadow)
        settled()
        for seed in range(data.draw(st.integers(1, 10))):
            action = data.draw(st.sampled_from(["update", "update", "place", "crop", "beams", "repeat"]))
            if action == "update":
                new, _ = states(len(shadow), data.draw(st.integers(1, 300)), seed=seed)
                shadow = torch.cat([shadow, new], dim=2)
                key, value = layer.update(new, -new)
                page = torch.arange(shadow.shape[2]) // PAGE_TOKENS
                for block, _ in key.placed.mixture.blocks():
                    is_fine = (page < spans.first) | (page >= block - spans.recent)
                    expected = torch.where(is_fine[:, None], shadow, shadow.half().float())
                    assert torch.equal(key.decoded(block), expected) and torch.equal(value.decoded(block), -expected)
                settled()
            elif action == "place":  # for a step that fails then: nothing is stored
                layer.place(len(shadow), data.draw(st.integers(1, 600)))
            elif action == "crop":
                count = data.draw(st.integers(0, shadow.shape[2] - 1))
                layer.crop(-count)
                shadow = shadow[:, :, : shadow.shape[2] - count].clone()
            elif action == "beams":
                chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(shadow) - 1), min_size=1, max_size=4)))
                layer.batch_select_indices(chosen)
                shadow = shadow[chosen]
            elif len(shadow) < 4:
                layer.batch_repeat_interleave(2)
                shadow = shadow.repeat_interleave(2, dim=0)
            for tables in (layer.written, layer.sealed.tables):
                assert tables.pages.used == len({page for table in tables.numbers for page in table})
                assert {len(table) for table in tables.numbers} == {len(tables.indices)}
        layer.reset()
        assert layer.nbytes == 0


GREEDY = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "extra", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["greedy", "beams", "crop"]
)
def test_generate_gives_the_stock_cache_s_tokens(model_type: str, extra: dict[str, Any]) -> None:
    model = use(tiny_model(model_type))
    batch = 1 if "prompt_lookup_num_tokens" in extra else 3
    ids = torch.randint(3, 97, (batch, 380), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if batch > 1:
        ids[0, :4], mask[0, :4] = 0, 0
        ids[2, :200], mask[2, :200] = 0, 0
    arguments = {**GREEDY, **extra, "attention_mask": mask}
    expected = model.generate(ids, past_key_values=DynamicCache(config=model.config), **arguments)
    cache = KVCache(model.config, "f32")
    for layer in cache.layers:
        layer.seals = Seals(Spans(1, first=type(layer) is PackedLayer), F32, F32)
    assert torch.equal(model.generate(ids, past_key_values=cache, **arguments), expected)
    assert any(layer.sealed.tables.indices for layer in cache.layers)


@every
def test_masks_with_holes_and_of_floats(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("layers", "sealing"):
        monkeypatch.setattr(f"stratakv.engine.cache.{home}.kernel_for", lambda layout, device: kernel)
    spans, options = Spans(1, first=1), Options(0.2)
    (k, v), (q, _) = states(2), states(2, heads=4, seed=1)
    layer = spanned(spans)
    layer.update(k[:, :, :300], v[:, :, :300])
    key, value = layer.update(k[:, :, 300:], v[:, :, 300:])
    q, rows = q[:, :, 300:], q[:, :, 300:].transpose(1, 2).flatten(0, 1)
    seen = torch.rand(2, 1, 400, TOKENS, generator=torch.Generator().manual_seed(4)) < 0.7
    seen &= torch.ones(400, TOKENS, dtype=torch.bool).tril(300)
    bias = torch.randn(2, 4, 400, TOKENS, generator=torch.Generator().manual_seed(5)).masked_fill(~seen, -torch.inf)
    for mask in (seen, bias):
        out = key.placed.attend(rows, key.placed.under(mask), options).view(2, 400, 4, DIM).transpose(1, 2)
        for block, part in key.placed.mixture.blocks():
            mixed = key.decoded(block), value.decoded(block)
            expected, _ = dense_attention(q[:, :, part], *mixed, mask[:, :, part], False, options, lse=True)
            assert (out[:, :, part] - expected).norm() / expected.norm() < 1e-3


@torch.no_grad()
def test_a_model_s_own_attention_sees_the_same() -> None:
    model = use(tiny_model("llama"))
    ids = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(2))
    profile = "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8"
    packed = model(ids, past_key_values=KVCache(model.config, profile)).logits
    own = model(ids, past_key_values=KVCache(model.config, profile), output_attentions=True)
    assert own.attentions[0].shape == (1, 4, 400, 400)
    torch.testing.assert_close(own.logits, packed, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_models_that_read_k_and_v_themselves_take_a_page_s_tokens_at_a_time() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    ids = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(2))
    profile = "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8"
    with pytest.raises(UserError, match="400 tokens at once .* a new cache .* pieces that end where pages do"):
        model(ids, past_key_values=KVCache(model.config, profile))
    cache = KVCache(model.config, profile)
    pieces = torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(128, dim=1)], dim=1)
    expected = use(model)(ids, past_key_values=KVCache(model.config, profile)).logits
    torch.testing.assert_close(pieces, expected, rtol=1e-3, atol=1e-3)


def test_what_can_t_be_sealed_names_layer_and_side_and_changes_nothing() -> None:
    k, v = states(tokens=500)
    v[:, :, 130] = 1e6
    layer = spanned(Spans(1), fine="f32", own="f16")
    with pytest.raises(UserError, match="layer 3, V: .*too large.*leave the spans"):
        layer.update(k, v)
    assert layer.length == 0
    layer.update(k[:, :, :300], v[:, :, :300])
    for _ in range(2):
        with pytest.raises(UserError, match="layer 3, V"):
            layer.update(k[:, :, 300:], v[:, :, 300:])
        assert layer.length == 300 and layer.sealed.tables.indices == [0]
    layer.crop(-200)
    layer.update(k[:, :, :200], k[:, :, :200])
    assert layer.length == 300


def test_a_page_that_can_t_be_sealed_after_a_step_undoes_it_in_all_layers() -> None:
    k, v = states(tokens=300)
    bad = v.clone()
    bad[:, :, 5] = 1e6
    steps, seals = Steps(), Seals(Spans(1), F16, F16)
    layers = [
        PackedLayer("layer 0", F32, F32, steps=steps, seals=seals),
        PackedSlidingLayer("layer 1", F32, F32, 128, steps=steps),
        PackedLayer("layer 2", F32, F32, steps=steps, seals=seals),
    ]

    def step(begin: int, end: int) -> Any:
        here = slice(begin, end)
        return [layer.update(k[:, :, here], (bad if layer is layers[2] else v)[:, :, here])[0] for layer in layers]

    step(0, 250)
    for _ in range(2):
        with pytest.raises(UserError, match="layer 2, V: .*too large.*leave the spans"):
            step(250, 256)
        assert [layer.length for layer in layers] == [250] * 3
        assert all(layer.written.indices == [0, 1] for layer in layers)
    for found in step(250, 255):  # no page was sealed and made fine again
        assert torch.equal(found.decoded(), k[:, :, 255 - found.shape[2] : 255])


@pytest.mark.parametrize("tokens", [1, 700])
def test_a_step_is_asked_once_what_it_could_not_store(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it seals: nothing else waits for a device."""
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    k, v = states(tokens=255 + tokens)
    steps, seals = Steps(), Seals(Spans(1), F16, F16)
    layers = [PackedLayer(f"layer {n}", F32, F32, steps=steps, seals=seals) for n in range(3)]
    for layer in layers:
        layer.update(k[:, :, :255], v[:, :, :255])
    check = steps.status.check
    monkeypatch.setattr(steps.status, "check", lambda: asked.append(layers[-1].length))
    asked: list[int] = []
    with no_waiting():
        for layer in layers:
            layer.update(k[:, :, 255:], v[:, :, 255:])
    assert asked == [255 + tokens] and all(layer.sealed.tables.indices for layer in layers)
    check()


def test_states_that_can_t_be_stored_are_named_before_their_pages_are_sealed() -> None:
    k, v = states(tokens=500)
    k[:, :, 130] = torch.nan
    layer = spanned(Spans(1))
    with pytest.raises(UserError, match="layer 3, K: .*non-finite.*the model's own states"):
        layer.update(k, v)
    assert layer.length == 0 and not layer.sealed.tables.indices


def test_a_window_within_the_span_is_all_fine() -> None:
    model = tiny_model("gemma2")
    cache = KVCache(model.config, "rest: turbo4; recent: 1 page turbo8; first: 1 page turbo8")
    kinds = [(type(layer).__name__, layer.k_type.name, layer.seals is None) for layer in cache.layers[:2]]
    assert kinds == [("PackedSlidingLayer", "turbo4", True), ("PackedLayer", "turbo8", False)]


@pytest.mark.parametrize("kept", [1, 100, 256])
def test_layers_that_compute_only_the_wanted_logits_see_their_own_blocks(kept: int) -> None:
    """Gemma 4's last layers read others' K and V, and of a prompt's tokens compute those alone whose logits are wanted."""
    model: Any = use(tiny_model("gemma4_text", max_position_embeddings=1024))
    profile = "turbo4; recent: 1 page turbo8"
    ids = torch.randint(3, 97, (1, 400), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, wanted = (
            model(input_ids=ids, past_key_values=KVCache(model.config, profile), use_cache=True, **options).logits
            for options in ({}, {"logits_to_keep": kept})
        )
    torch.testing.assert_close(wanted, whole[:, -kept:], rtol=1e-3, atol=1e-3)
