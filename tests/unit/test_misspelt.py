"""What a caller sees who misspells an argument."""

import pytest

import tillroll


@pytest.mark.parametrize("verb", ["consume", "hold"])
def test_a_misspelt_argument_is_named(verb: str):
    with tillroll.open("memory://") as ledger:
        ledger.grant("acme", 10)
        with pytest.raises(tillroll.InvalidInput, match="unknown argument 'unit'"):
            getattr(ledger, verb)("acme", unit=3)
