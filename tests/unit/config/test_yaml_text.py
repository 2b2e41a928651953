"""Reading YAML: places, strictness, references, and what a hostile file can and cannot do."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.document import CatalogError, spell
from proxy.config.yaml_text import MAX_BYTES, read_document


@pytest.fixture(autouse=True, params=["libyaml", "python"])
def _parser(request, monkeypatch):
    """Everything holds with and without libyaml."""
    if request.param == "python":
        monkeypatch.setattr(yaml, "__with_libyaml__", False)


def read(text, **env):
    return read_document(text, "f.yaml", env)


def problems_of(text, **env):
    """What is wrong with a text, found while reading it or by giving up."""
    try:
        return [str(problem) for problem in read(text, **env).problems]
    except CatalogError as error:
        return [str(problem) for problem in error.problems]


def test_every_key_and_item_has_a_place():
    """Line and column count from 1, as editors do."""
    document = read("a:\n  b: 1\n  c: [x, y]\n")
    assert document.data == {"a": {"b": "1", "c": ["x", "y"]}}
    assert (document.places["a", "b"], document.places["a", "c", 1]) == ((2, 3), (3, 10))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_empty_data(text):
    """A file of comments is a file that says nothing."""
    assert read(text).data in (None, "")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("off", "off"), ("yes", "yes"), ("007", 7), ("1e3", 1000.0), ("True", True), ("~", None), ("0x1F", "0x1F")],
)
def test_a_plain_scalar_has_the_meaning_of_yaml_1_2(text, meaning):
    """``off`` is a word; only true and false are booleans, only decimal digits are numbers."""
    assert meaning == read(f"a: {text}").data["a"].resolve()


@pytest.mark.parametrize("text", ["1e999", ".nan", ".inf", "9" * 5000])
def test_a_number_without_a_finite_value_stays_text(text):
    """Infinity must not sneak in as a time-out."""
    assert text == read(f"a: {text}").data["a"].resolve()


def test_a_quoted_scalar_is_text():
    """Quotes say so."""
    assert type(read("a: '1'").data["a"]) is str


def test_a_key_that_stands_twice_is_refused_with_both_lines():
    """The later one would silently win."""
    assert problems_of("a: 1\nb: 2\na: 3\n") == ["f.yaml:3:1: a: the key is already in line 1"]


def test_a_tag_is_refused():
    """Tags make objects of text in careless readers."""
    assert problems_of("a: !!python/object:os.system x") == ["f.yaml:1:4: tags are not allowed"]


def test_a_second_document_is_refused():
    """Which of them would count?"""
    assert "single document" in problems_of("a: 1\n---\nb: 2\n")[0]


def test_a_syntax_error_has_its_place():
    """The line is what people look for first."""
    assert problems_of("a: [1,\nb: }")[0].startswith("f.yaml:2:4: ")


def test_a_file_that_breaks_off_is_wrong_at_its_end():
    """Not in a line that is not there."""
    assert problems_of("a: 1\nb: [c")[0].startswith("f.yaml:2:6: ")


def test_an_unquoted_reference_between_braces_gets_a_hint():
    """Its closing brace ends the mapping, which YAML explains badly."""
    assert "must be quoted" in problems_of("a: {b: ${KEY}}")[0]


@pytest.mark.parametrize("text", [b"a: \xff", "a: \x01", b"a: b\nc: \xc3("])
def test_a_file_that_is_not_text_is_refused(text):
    """Bytes that are not UTF-8 and control characters have a place as well."""
    assert problems_of(text)[0].startswith(("f.yaml:1:4: ", "f.yaml:2:4: "))


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    """Some editors write one."""
    assert read(b"\xef\xbb\xbfa: 1").data == {"a": "1"}


def test_a_file_that_is_too_long_is_refused_unread():
    """The bound holds before the parser sees it."""
    assert "longer than" in problems_of("a: 1\n" + "#" * MAX_BYTES)[0]


def test_an_alias_stands_for_its_anchor():
    """Repeating oneself is not required."""
    assert read("a: &a {x: 1}\nb: *a\n").data == {"a": {"x": "1"}, "b": {"x": "1"}}


def test_a_merge_takes_what_the_mapping_does_not_say_itself():
    """Own keys win, the first of several sources wins, sources may merge themselves."""
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: [*b, *a], z: 3}\n"
    assert read(text).data["c"] == {"x": "1", "y": "2", "z": "3"}


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}"])
def test_an_anchor_that_contains_itself_is_refused(text):
    """It has no end."""
    assert problems_of(text) != []


@pytest.mark.long
def test_aliases_that_multiply_are_refused():
    """Nine lines can stand for a thousand million values."""
    lines = ["a0: &a0 x"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "multiply" in problems_of("\n".join(lines))[-1]


def test_references_that_multiply_are_refused():
    """Long values of the environment count by their length."""
    text = "a: &a ${LONG}\nb: [" + ", ".join(["*a"] * 1_000) + "]"
    assert "multiply" in problems_of(text, LONG="x" * 100_000)[-1]


@pytest.mark.parametrize("text", ["[" * 5_000, "{a: " * 5_000, "- " * 5_000 + "x", "? " * 5_000])
def test_deep_nesting_is_refused_early(text):
    """Depth must not become depth of our stack."""
    assert "nested deeper than 32" in problems_of(text)[0]


def test_a_key_that_is_no_word_is_refused():
    """YAML allows lists as keys; nothing here has one."""
    assert problems_of("? [a]\n: b") == ["f.yaml:1:3: a key must be a word"]


def test_a_reference_stands_for_a_variable_or_its_default():
    """Unset and empty variables take the default, as in a shell."""
    text = "a: ${A}\nb: x-${B:-y}-z\nc: ${EMPTY:-}\nd: $$HOME $x"
    assert read(text, A="1", EMPTY="").data == {"a": "1", "b": "x-y-z", "c": "", "d": "$HOME $x"}


def test_a_reference_to_nothing_is_an_error_with_a_hint():
    """A missing key must not become an empty one unnoticed."""
    expected = "f.yaml:1:4: a: the environment variable A is not set; set it, or write ${A:-} to do without"
    assert [expected] == problems_of("a: ${A}")


def test_an_unfinished_reference_is_an_error():
    """It is a typing error, never meant as text."""
    assert "an unfinished reference" in problems_of("a: x${A")[0]
    assert "an unfinished reference" in problems_of("a: ${A:-${B}}")[0]


def test_a_variable_cannot_add_structure():
    """Its value is put in after parsing."""
    assert read("a: ${A}", A="1\nb: 2").data == {"a": "1\nb: 2"}


def test_a_path_is_spelt_so_that_keys_with_dots_can_be_read():
    """Route names have dots themselves."""
    assert spell(("routes", "chat.completions", "cache", 2)) == "routes.'chat.completions'.cache[2]"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abc:[]{},-&*!?|>'\"#%@` \n\t${}<\u2028\ufeff0", max_size=60))
def test_any_text_is_read_or_refused(text):
    """No text makes the reader fail in another way."""
    assert isinstance(problems_of(text, a="1"), list)
