import pytest

from kmed.models.build import list_models, model_facts
from kmed.models.measure import NUM_CLASSES, measure, write_facts
from kmed.models.registry import MODELS

PUBLISHED = {name: entry.published for name, entry in MODELS.items() if entry.published}
# torchvision's documentation: multiply-adds in billions at 224x224
PUBLISHED_GMACS = {
    "resnet18": 1.81,
    "resnet50": 4.09,
    "resnet152": 11.51,
    "densenet121": 2.83,
    "densenet161": 7.73,
    "efficientnetb0": 0.39,
}


@pytest.fixture(scope="module")
def facts():
    return model_facts().set_index("name")


def test_the_table_has_every_model_once_and_in_order(facts):
    assert list(facts.index) == list_models()
    assert set(PUBLISHED) == set(list_models()) - {"vit"}  # which is the project's own


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name, facts):
    published, feature_dim = PUBLISHED[name]
    heads = (1000 + 1000 * feature_dim, NUM_CLASSES + NUM_CLASSES * feature_dim)
    assert facts.trainable_parameters[name] == published - heads[0] + heads[1]


@pytest.mark.parametrize("name", PUBLISHED_GMACS)
def test_multiply_adds_are_the_published_ones(name, facts):
    assert facts.multiply_adds[name] / 1e9 == pytest.approx(PUBLISHED_GMACS[name], abs=0.006)


def test_multiply_adds_of_the_transformer_by_hand(facts):
    tokens, width = 1 + 30 * 40, 128
    patches = 30 * 40 * 8 * 8 * 3 * width
    block = tokens * (4 + 2 * 4) * width**2 + 2 * tokens**2 * width
    assert facts.multiply_adds["vit"] == patches + 6 * block + width * NUM_CLASSES


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("resnet18", "densenet121", "efficientnetb0", "efficientnetlite0", "vit")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in list_models()
    ],
)
def test_the_table_equals_what_is_measured(name, facts):
    row = measure(name)
    assert row.pop("name") == name
    assert row == {column: facts.loc[name, column] for column in row}


def test_writing_measures_every_model(tmp_path, monkeypatch, facts):
    monkeypatch.setattr("kmed.models.measure.list_models", lambda: ["resnet18"])
    write_facts(tmp_path / "facts.csv")
    text = (tmp_path / "facts.csv").read_text().splitlines()
    assert text[0].startswith("name,trainable_parameters,total_parameters,multiply_adds")
    assert len(text) == 2 and text[1].startswith("resnet18,11178564,")
