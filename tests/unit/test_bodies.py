"""Bodies: an object says each thing once, and to look for that costs next to nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tillroll.ledger.errors import InvalidInput
from tillroll.wire import bodies

TWICE = [
    (bodies.Consume, b'{"units":1,"units":2}'),
    (bodies.Consume, b'{"units":1,"units":1}'),
    (bodies.Consume, b'{"units":"1","reason":"a:b","units":"2"}'),
    (bodies.Consume, b'{"units":1,"\\u0075nits":2}'),
    (bodies.Consume, b'{"operation":"x","meters":{"images":1,"images":2}}'),
    (bodies.Consume, b'{"units":1,"metadata":{"a":[{"b":1,"b":2}]}}'),
    (bodies.Consume, b'{"units":1,"metadata":{"a":["",":"],":":1,":":2}}'),
    (bodies.Grant, b'{"units":1, "wallet" : "a", "units" : 2}'),
    (bodies.Entitle, b'{"grants":[{"units":1,"units":2}]}'),
    (bodies.Batch, b'{"items":[1],"items":[2]}'),
    (bodies.Batch, b'{"items":[2],"items":[2]}'),
    (bodies.Batch, b'{"items":[2, 2], "items": [2, 2]}'),
]
ONCE = [
    (bodies.Consume, b'{"units":1}'),
    (bodies.Consume, b'{"units":1,"reason":"\\"units\\":2"}'),
    (bodies.Consume, b'{"units":1,"reason":"a \\"units\\": b"}'),
    (bodies.Consume, b'{"units":1,"metadata":{"units":1,"a":{"units":2},"b":[{"a":1},{"a":1}]}}'),
    (bodies.Consume, b'{"operation":"x","meters":{"images":1},"tags":{"images":"x"}}'),
    (bodies.Consume, b'{"units":1,"metadata":{"a":["b",":c"]}}'),
    (bodies.Nothing, b""),
    (bodies.Nothing, b" {} "),
    (bodies.Batch, b'{"items":[{"items":1},{"items":2}]}'),
    (bodies.Batch, b' { "items" : [\n {"a":[1,{}]} ,\n "x,]}" \n ] \n } '),
]


@pytest.mark.parametrize(("shape", "body"), TWICE)
@pytest.mark.parametrize("parse", [bodies.parse, bodies.parse_arguments])
def test_a_name_that_comes_twice_is_refused(parse: Any, shape: Any, body: bytes):
    if shape is bodies.Batch and parse is bodies.parse_arguments:
        parse = bodies.parse  # a batch has no verb
    with pytest.raises(InvalidInput, match=r"comes twice|one list of items"):
        parse(shape, body)


def test_many_names_are_looked_through_once():
    names = ",".join(f'"{nth}":{nth}' for nth in range(300_000))
    body = f'{{"units":1,"metadata":{{{names},"299999":1}}}}'.encode()
    with pytest.raises(InvalidInput, match="'299999' comes twice"):
        bodies.parse_arguments(bodies.Consume, body)


@pytest.mark.parametrize(("shape", "body"), ONCE)
def test_a_name_that_comes_once_in_each_object_is_not(shape: Any, body: bytes):
    assert type(bodies.parse(shape, body)) is shape
    if shape is not bodies.Batch:
        assert isinstance(bodies.parse_arguments(shape, body), dict)


texts = st.text(st.sampled_from('ab:",\\\\ {}[]é'), max_size=4)
values = st.recursive(
    st.none() | st.integers(0, 9) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(texts, inner), max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def written(value: Any, *, ascii_only: bool) -> str:
    """Write a value as JSON; a tuple of pairs is an object, which may have a name twice."""
    if isinstance(value, tuple):
        pairs = (
            f"{json.dumps(k, ensure_ascii=ascii_only)}: {written(v, ascii_only=ascii_only)}"
            for k, v in value
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(one, ascii_only=ascii_only) for one in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def doubled(value: Any) -> bool:
    """Return whether an object in it has a name twice."""
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(names) != len(set(names)) or any(doubled(one) for _, one in value)
    return isinstance(value, list) and any(doubled(one) for one in value)


@given(value=st.lists(st.tuples(texts, values), max_size=4).map(tuple), ascii_only=st.booleans())
def test_it_is_found_wherever_it_is(value: Any, *, ascii_only: bool):
    text = written(value, ascii_only=ascii_only)
    body = f'{{"units":1,"metadata":{text}}}'.encode()
    for parse in (bodies.parse, bodies.parse_arguments):
        if doubled(value):
            with pytest.raises(InvalidInput):
                parse(bodies.Consume, body)
        else:
            parse(bodies.Consume, body)


@given(items=st.lists(values, min_size=1, max_size=5), space=st.sampled_from(["", " ", "\n  "]))
def test_a_batch_has_one_list(items: list[Any], space: str):
    texts = [written(item, ascii_only=True) for item in items]
    listed = f"{space},{space}".join(texts)
    one = f'{{{space}"items":{space}[{listed}{space}]{space}}}'
    assert len(bodies.parse(bodies.Batch, one.encode()).items) == len(items)
    two = f'{{"items":[{listed}],{space}"items":[{listed}]}}'
    with pytest.raises(InvalidInput):
        bodies.parse(bodies.Batch, two.encode())
