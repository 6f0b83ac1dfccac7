"""llama.cpp's grammars, as llguidance reads them after us."""

from __future__ import annotations

from typing import Any

import pytest
from servers import embedded

from stratakv.serve.gbnf import GbnfError, gbnf_to_lark
from stratakv.serve.grammar import Grammars
from stratakv.serve.request import GrammarSpec

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    loaded = embedded()
    return Grammars(loaded.tokenizer, 4096, frozenset([1]))


def matches(grammars: Grammars, grammar: str, text: str) -> bool:
    """Whether a grammar takes a whole text, token by token."""
    matcher = grammars.matcher(GrammarSpec("gbnf", grammar))
    ids: list[int] = embedded().tokenizer(text, add_special_tokens=False).input_ids
    for id_ in ids:
        if not bool(matcher.mask()[id_]):
            return False
        matcher.accept(id_)
    return matcher.complete or bool(matcher.mask()[1])  # 1: the end of the text


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (r'root ::= "\u00e9\U0001F600\x41"', "\u00e9\U0001f600A", "eA"),
        (r"root ::= [\u0430-\u044f]+ [\U0001F600-\U0001F64F]?", "мир\U0001f600", "mir"),
        ('root ::= "a\nb"', "a\nb", "ab"),
        ('root ::= ("a"*)*', "aaa", "b"),
        ('root ::= ("a"* "b"?)+', "aab", "c"),
        ('root ::= "(" root ")" | ("a"*)*', "((aa))", "((aa)"),
        ('root ::= [a-z]* "end"', "sendend", "send it"),
        ('root ::= "a" # comment\n  | "b"\n\n# more\n', "b", "c"),
        ('root ::= a-b a_b aB\na-b ::= "1"\na_b ::= "2"\naB ::= "3"', "123", "111"),
        ('root ::= "a"{2} "b"{,2} "c"{1,}', "aabbc", "abc"),
        (r'root ::= [^"/\]-]+ "/"', "a b[/", 'a"/'),
        (r'root ::= ["\]\\-]+', '"]\\-', "a"),
        ("root ::= .", "\n", "ab"),
        (JSON, '{"a": [1, -2.5e3, {"b\\n": null}]}', '{"a": tru}'),
    ],
)
def test_what_a_grammar_takes(grammars: Any, grammar: str, good: str, bad: str) -> None:
    assert matches(grammars, grammar, good)
    assert not matches(grammars, grammar, bad)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ('root ::= ("a"\n', "line 1, column 10: this '(' is not closed"),
        ('root ::= "a"\nb ::= "b" c\n', "line 2, column 11: there is no rule 'c'"),
        ('root ::= "a"\n\nb ::= "b" ]', "line 3, column 11: ']' is not expected here"),
        ('root ::= "abc', 'line 1, column 10: this " is not closed'),
        ("root ::= [a-", "line 1, column 10: this [ is not closed"),
        ("root ::= []", "column 10: these brackets hold no character"),
        ("root ::= [z-a]", "column 11: this range ends before it begins"),
        (r'root ::= "\q"', "column 11: '\\\\q' is no escape"),
        (r'root ::= "\u12"', "column 11: \\u needs 4 hexadecimal digits"),
        (r'root ::= "\ud800"', "column 11: \\ud800 is no character"),
        ('root = "a"', "column 6: expected '::='"),
        ('root ::= "a"{3,1}', "column 13: {3,1}: the most is below the least"),
        ('root ::= "a"{9999999}', "column 14: repeated more than"),
        ("root ::= <think>", "column 10: tokens in a grammar"),
        ('other ::= "a"', "there is no rule 'root'"),
        ("root ::= " + "(" * 200, "column 110: more than 100 parentheses"),
        ("= x", "column 1: expected the name of a rule, not '='"),
    ],
)
def test_errors_name_the_place(grammar: str, says: str) -> None:
    with pytest.raises(GbnfError) as error:
        gbnf_to_lark(grammar)
    assert says in str(error.value)
