"""The page: a function of its JSON alone, complete, small, and sound HTML."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evidences import evidence, judgement

from stratakv.evidence import read_evidence
from stratakv.profile import Spans
from stratakv.report import build_report

ROOT = Path(__file__).parents[2]


class Outline(HTMLParser):
    """What a browser, a screen reader and a network would see."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(evidence(), [judgement()])


def test_same_data_same_bytes_and_nothing_is_changed(page):
    data, judges = evidence(), [judgement()]
    before = copy.deepcopy((data, judges))
    assert build_report(data, judges) == page
    assert (data, judges) == before


def test_html_is_sound_and_accessible(page):
    outline = Outline(page)
    assert outline.open == []
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids))
    targets = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert targets and {target[1:] for target in targets if target} <= set(outline.ids)
    assert ("html", {"lang": "en"}) in outline.tags
    assert all("scope" in attributes for tag, attributes in outline.tags if tag == "th")
    charts = [
        attributes for tag, attributes in outline.tags if tag == "svg" and attributes.get("aria-hidden") != "true"
    ]
    assert len(charts) >= 6 and all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    scrollers = [attributes for _, attributes in outline.tags if attributes.get("role") == "region"]
    assert scrollers and all(each["tabindex"] == "0" and each["aria-label"] for each in scrollers)


def test_nothing_is_loaded_and_nothing_runs(page):
    assert "://" not in page and "@import" not in page and "url(" not in page
    tags = Outline(page).tags
    assert not {tag for tag, _ in tags} & {"script", "img", "iframe", "object", "embed", "video"}
    assert [attributes for tag, attributes in tags if tag == "link"] == [{"rel": "icon", "href": "data:,"}]


def test_what_it_must_show(page):
    words = re.sub(r"\s+", " ", Outline(page).words)
    for each in (
        "KLD 32 % lower than with turbo4 on text.txt (KLD -32 % [-35, -29])",
        "holds KLD at least 30 % lower than uniform turbo4: -32 % [-35, -29]",
        "not shown lower than every rule at those bytes",
        "Layer 0K turbo4V turbo5",
        "20 shuffles of the tuned profile",
        "3.60 to 6.45, median 5.0",
        "R² 0.980, bias +2 %",
        "Mixed precision can save at most about 31 %",
        "900 forward passes, 300 s, effort normal",
        "stratakv show -m embedded --profile tuned-turbo4.profile.json",
        "stratakv generate -m embedded --profile tuned-turbo4.profile.json",
        "stratakv serve -m embedded --profile tuned-turbo4.profile.json",
        "stratakv export tuned-turbo4.profile.json -m embedded --to fork",
        "stratakv tune -m embedded --budget turbo4",
        "turbo2: KLD added",
        "turbo5: KLD saved",
    ):
        assert each in words, each


def test_far_predictions_stand_beside_all(page):
    far_page = build_report(evidence(), [judgement(far=True)])
    outline = Outline(far_page)
    assert outline.open == []
    words = re.sub(r"\s+", " ", outline.words)
    for each in (
        "Far predictions: KLD -32 % [-34, -30] 4.08 [3.67, 4.49] e-3 nats.",
        "far KLD [95 %]",
        "7.20 to 12.9, median 10",
        "The same for far predictions: 4 contexts of 2,048 tokens, some words.",
    ):
        assert each in words, each
    assert far_page.count("KL divergence of far predictions over bytes a token on text.txt") == 2, "wide and narrow"
    assert "far KLD" not in page and "Far predictions" not in page, "files from before have none and say nothing"


def test_a_model_without_far_predictions_says_so():
    data = judgement()
    data["far"] = {"chunks": 0, "words": "no far predictions: made-up doesn't copy"}
    data["rows"] = [{**row, "far": None} for row in data["rows"]]
    words = Outline(build_report(evidence(), [data])).words
    assert "No far predictions: made-up doesn't copy." in words
    assert "far KLD" not in words


@pytest.mark.parametrize("wish", [Spans(2, first=1), Spans(1), Spans(recent=3, recent_type="f16"), Spans(first=2)])
def test_spans_of_a_tuning_are_shown(wish):
    said = re.findall(r"<dd>(\w+: .*?)</dd>", build_report({**evidence(), "spans": wish.to_json()}))
    assert "; ".join(said) == wish.text(), "in the words of rule lines"
    assert "spans, not in" not in build_report(evidence())


def test_each_layer_s_spans_are_in_the_table():
    data = evidence()
    there = [Spans(2, first=1).to_json(), *[None] * (len(data["geometry"]) - 1)]
    page = build_report({**data, "spans": there})
    table = page[page.index("Types by layer") :].split("</table>")[0]
    assert table.count("<td>none</td>") == len(there) - 1
    assert table.count(f"<td>{Spans(2, first=1).text()}</td>") == 1
    assert '<th scope="col">spans</th>' not in build_report(data)


def test_a_budget_of_a_context_is_served_as_such():
    data = evidence()
    data["budget"]["context"] = 8192
    assert "--profile tuned-turbo4.profile.json -c 8192 -np 1" in build_report(data)
    assert "-np 1" not in build_report(evidence())


def test_the_front_lies_at_the_bytes_that_rows_count():
    """With spans the chosen point was drawn at the bytes outside of them, left of the row that is the same profile."""
    data = {**evidence(), "spans": Spans(1).to_json()}
    data["front"] = [
        {**point, "kld": 2e-3, "bytes_per_token_at_context": 4000 + i} for i, point in enumerate(data["front"])
    ]
    page = build_report(data)
    assert "tuned, 4,000 bytes a token, " in page
    assert f"tuned, {data['front'][0]['bytes_per_token']:,} bytes" not in page
    assert "don't know of spans" not in page
    data["fidelity"] = {"points": [], "r2": None, "bias": None}
    assert "from gradients alone, which don&#39;t know of spans" in build_report(data).replace("'", "&#39;")


def test_a_claim_that_does_not_hold_and_a_difference_that_is_not_shown_say_so():
    lost = judgement(-0.01)
    tuned = next(row for row in lost["rows"] if row["family"] == "tuned")
    words = Outline(build_report(evidence(), [lost])).words
    assert "does not hold" in words
    assert tuned["kld_diff_ci95"][0] < 0 < tuned["kld_diff_ci95"][1]
    assert "No difference from turbo4 shown" in words


def test_without_a_judgement_it_says_so_and_makes_no_claim():
    words = Outline(build_report(evidence())).words
    assert "Not judged yet." in words and "lower than with" not in words


def test_what_any_stage_says_is_shown():
    data = evidence()
    data["told"], data["rounding"] = ["headroom", "rounding", "fidelity"], {"words": "layers <are> rounded"}
    page = build_report(data)
    assert "Layers &lt;are&gt; rounded" in page and "Mixed precision can save at most about 31 %" in page
    del data["told"]  # as older files are
    assert "Layers &lt;are&gt; rounded" not in build_report(data)


def test_texts_from_the_data_are_escaped():
    data = evidence()
    data["name"] = "<script>alert(1)</script>"
    data["sensitivity"]["cells"][0]["type"] = '"><img src=x>'
    data["bits_per_value"]['"><img src=x>'] = 4.0
    tags = {tag for tag, _ in Outline(build_report(data)).tags}
    assert not tags & {"script", "img"}


def test_what_was_not_measured_is_left_out():
    data = evidence()
    data["sensitivity"]["cells"] = [
        {**cell, "kld": None, "ci95": None, "gradient": None} for cell in data["sensitivity"]["cells"]
    ]
    data["fidelity"] = {"points": [], "r2": None, "bias": None}
    data["rows"], data["warnings"] = [], ["a <warning>"]
    words = Outline(build_report(data)).words
    assert "Not measured in this run." in words and "a <warning>" in words


def test_what_only_a_gradient_predicts_is_hollow_and_in_parentheses():
    data = evidence()
    for cell in data["sensitivity"]["cells"]:
        if cell["type"] == "turbo2":
            cell["kld"] = cell["ci95"] = None
    page = build_report(data)
    assert page.count('class="side-k hollow"') == page.count('class="side-v hollow"') == 12
    assert "V turbo2: KLD added 8.00 e-3, predicted" in page and "(8.00)" in page
    assert "hollow: predicted from gradients, not measured" in page
    assert "hollow: predicted" not in build_report(evidence())


def test_intervals_may_be_missing():
    judged = judgement()
    for row in judged["rows"]:
        row["kld_mean_ci95"] = row["kld_diff_ci95"] = row["ppl_diff_ci95"] = None
    assert "No difference from turbo4 shown" in build_report(evidence(), [judged])


def test_long_names_are_letters_in_tables_and_said_once():
    """A rule line of 80 layers and a tuned file with spans: cells stay short, the legend has the whole."""
    judged = judgement(far=True)
    rule = "; ".join(f"{layer}: turbo4/turbo{2 + layer % 3}" for layer in range(80))
    spans = "a-model-of-eighty-layers; recent: 1 page turbo8; first: 1 page turbo8"
    for row in judged["rows"]:
        row["name"] = {"edges3": rule, "tuned-turbo4": spans}.get(row["name"], row["name"])
    page = build_report(evidence(layers=80), [judged])
    heads = re.findall(r'<th scope="row">(.*?)</th>', page)
    assert max(map(len, heads)) <= 40 and {"A", "tuned"} <= set(heads)
    assert re.findall(r"<dt>(\w+)</dt><dd>([^<]*)</dd></div>", page.split('class="names">')[1])[:2] == [
        ("A", rule),
        ("tuned", spans),
    ]
    text = re.sub(r"<title>.*?</title>", "", page)  # of marks, shown when pointed at
    assert text.count(rule) == text.count(spans) == 1


def test_short_names_need_no_legend(page):
    assert 'class="names"' not in page


def test_128_layers_stay_below_2_mb():
    page = build_report(evidence(layers=128), [judgement(), judgement()])
    assert len(page.encode()) < 2_000_000
    assert "Layer </span>127" in page


def test_it_is_made_without_torch(tmp_path):
    file = tmp_path / "e.json"
    file.write_text(json.dumps(evidence()))
    code = (
        "import sys; from stratakv.cli.main import main; "
        f"code = main(['report', {str(file)!r}, '-o', {str(tmp_path / 'r.html')!r}]); "
        "assert code == 0 and not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "r.html").read_text() == build_report(evidence())


def test_a_real_evidence_file():
    """Of `tune --effort quick` on stories260K, numbers rounded: 5 layers of head_dim 8, most cells known from gradients alone."""
    data = read_evidence(Path(__file__).parent / "data" / "stories.evidence.json")
    words = Outline(build_report(data)).words
    assert "tuned-6.000" in words and "q5_0_rot in 3" in words and "R² 0.896" in words and "GiB" in words
