"""Reading evidence and judgements: what is wrong is named in one line."""

from __future__ import annotations

import json

import pytest
from evidences import evidence, judgement

from stratakv.errors import UserError
from stratakv.evidence import read_evidence, read_judge


def written(tmp_path, data) -> str:
    path = tmp_path / "file.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_what_is_right_is_read(tmp_path):
    assert read_evidence(written(tmp_path, evidence())) == evidence()
    assert read_judge(written(tmp_path, judgement())) == json.loads(json.dumps(judgement()))


def test_further_fields_are_welcome(tmp_path):
    data = evidence() | {"something": {"new": 1}}
    assert read_evidence(written(tmp_path, data)) == data


def test_far_predictions_are_read_and_checked_where_they_are(tmp_path):
    data = judgement(far=True)
    assert read_judge(written(tmp_path, data)) == json.loads(json.dumps(data))
    del data["rows"][2]["far"]["kld_mean"]
    with pytest.raises(UserError, match=r"rows\[2\].far.kld_mean is missing"):
        read_judge(written(tmp_path, data))
    data["rows"][2]["far"] = None
    read_judge(written(tmp_path, data))
    data["far"] = 4
    with pytest.raises(UserError, match="far is 4"):
        read_judge(written(tmp_path, data))


def holder(data, path: str):
    """What holds the last name of a path, and that name."""
    *way, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    for name in way:
        data = data[name]
    return data, last


def cut(path: str):
    data = evidence()
    inner, last = holder(data, path)
    del inner[last]
    return data


def changed(path: str, value):
    data = evidence()
    inner, last = holder(data, path)
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "not JSON"),
        ("[]", "schema is None"),
        ({"schema": "stratakv/profile/1"}, "'stratakv/profile/1', 'stratakv/tune/1' is needed"),
        (cut("front"), "front is missing"),
        (cut("front.0.pairs"), "front[0].pairs is missing"),
        (cut("sensitivity.cells.3.kld"), "sensitivity.cells[3].kld is missing"),
        (evidence() | {"chosen": []}, "chosen is [], not an object"),
        (evidence() | {"spans": {"recent": 2}}, "spans.recent_type is missing"),
        (evidence() | {"spans": 2}, "spans is 2, not an object"),
        (evidence() | {"spans": [2]}, "spans[0] is 2"),
        (evidence() | {"spans": [None]}, "spans is of 1 layers"),
        (evidence() | {"front": []}, "front is empty"),
        (changed("front.0.pairs", [["q8_0", "q8_0"]]), "front[0].pairs is of 1 layers"),
        (changed("front.0.pairs.0", ["q8_0"]), 'front[0].pairs[0] is ["q8_0"], not 2 values'),
        (changed("sensitivity.cells.0.side", ""), 'sensitivity.cells[0].side is "", not k or v'),
        (changed("sensitivity.cells.0.ordinal", 99), "a cell is of layer 99"),
        (changed("rows.0.kld_mean_ci95", []), "rows[0].kld_mean_ci95 is []"),
        (evidence() | {"warnings": [1]}, "warnings[0] is 1, not str"),
        (evidence() | {"rows": {}}, "rows is {}, not a list"),
        (evidence() | {"budget": {"text": "x", "bytes_per_token": True, "bpv": 4}}, "bytes_per_token is true"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, data, said):
    with pytest.raises(UserError) as error:
        read_evidence(written(tmp_path, data))
    assert said in str(error.value) and "file.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1" * 5000])
def test_numbers_that_json_does_not_have_are_one_line(tmp_path, number):
    text = json.dumps(evidence()).replace('"forward_passes":', f'"more": {number}, "forward_passes":', 1)
    assert number in text
    with pytest.raises(UserError, match="is not JSON"):
        read_evidence(written(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_judge(tmp_path / "absent.json")
