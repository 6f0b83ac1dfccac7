"""What is read at once: rows with a common beginning, and no batch that costs more than it saves."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make lm-eval")

from stratakv.lm_eval.rows import batches, common, rows_of

CONTEXT = list(range(10, 60))
OTHER = list(range(100, 160))


def questions(*contexts: list[int], choices: int = 4, length: int = 3) -> list[tuple[list[int], list[int]]]:
    """Each context with `choices` continuations that differ in their first token."""
    return [(context, [200 + choice] * length) for context in contexts for choice in range(choices)]


def test_a_row_holds_all_but_the_last_token_and_says_what_is_wanted():
    (row,) = rows_of([([1, 2, 3], [4, 5])], 100)
    assert row.tokens == (1, 2, 3, 4)
    assert row.wanted == [(0, (4, 5))]
    assert row.first == 2  # the prediction made at token 3 is the first one


def test_long_contexts_lose_their_beginning():
    (row,) = rows_of([(list(range(100)), [7, 8])], 10)
    assert row.tokens == (*range(91, 100), 7)


def test_choices_that_differ_in_their_last_token_are_one_row():
    rows = rows_of([(CONTEXT, [1]), (CONTEXT, [2]), ([*CONTEXT, 3], [4]), (CONTEXT, [3, 4])], 100)
    assert [len(row.wanted) for row in rows] == [2, 2]
    assert rows[1].first == len(CONTEXT) - 1  # where the longer of the two continuations begins


def test_the_choices_of_a_question_are_a_batch_that_shares_its_context():
    found = batches(rows_of(questions(CONTEXT, OTHER), 1000), 8)
    assert [len(batch.rows) for batch in found] == [4, 4]
    assert [batch.stem for batch in found] == [len(CONTEXT) - 1, len(OTHER) - 1]


def test_a_batch_is_no_larger_than_asked_for():
    found = batches(rows_of(questions(CONTEXT, choices=5), 1000), 2)
    assert [len(batch.rows) for batch in found] == [2, 2, 1]


def test_single_rows_of_like_length_are_read_together():
    alike = [([number, *range(40 + number)], [7]) for number in range(6)]
    assert [len(batch.rows) for batch in batches(rows_of(alike, 1000), 8)] == [6]
    unlike = [([number, *range(20 + 30 * number)], [7]) for number in range(6)]
    assert max(len(batch.rows) for batch in batches(rows_of(unlike, 1000), 8)) < 4


def test_questions_that_share_examples_keep_their_own_contexts():
    examples = list(range(1000, 1400))
    found = batches(rows_of(questions([*examples, *CONTEXT], [*examples, *OTHER]), 1000), 8)
    assert [len(batch.rows) for batch in found] == [4, 4]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_every_request_is_in_one_batch_and_rows_go_past_their_stem(most):
    pairs = questions(CONTEXT, OTHER, [1], [1, 2], length=2)
    found = batches(rows_of(pairs, 1000), most)
    assert sorted(index for batch in found for row in batch.rows for index, _ in row.wanted) == list(range(len(pairs)))
    for batch in found:
        assert all(row.tokens[: batch.stem] == batch.rows[0].tokens[: batch.stem] for row in batch.rows)
        assert all(batch.stem <= row.first < len(row.tokens) for row in batch.rows)


def test_nothing_is_shared_where_a_model_can_t_go_back():
    assert {batch.stem for batch in batches(rows_of(questions(CONTEXT, OTHER), 1000), 8, shared=False)} == {0}


def test_common():
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([], [1]) == 0
