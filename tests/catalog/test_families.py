import pytest

from scaling.catalog import families, recipes
from scaling.catalog.sizes import parameters
from scaling.config import default_config
from scaling.config.resolve import resolve
from scaling.config.schema import freeze


@pytest.mark.parametrize("size", families.ALL, ids=lambda size: f"{size.family} {size.name}")
def test_counts_are_the_published_ones(size):
    assert parameters(size.model()).total == pytest.approx(size.printed_parameters, rel=0.01)
    assert resolve(freeze(size.apply(default_config()))).model == size.model()


def test_unknown_ones_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Lama.*LLaMA"):
        families.find("Lama", "7b")
    with pytest.raises(ValueError, match=r"8b.*7b, 13b"):
        recipes.family("LLaMA", "8b", 1e9)
