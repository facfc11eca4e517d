"""The graph of words finds what comparing all of them finds, and the index what comparing all pictures finds."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")
from drawn_scenes import draw_scene, turn

from kmed.data.audit import visual_words
from kmed.data.audit.fingerprints import Variant, fingerprint, shrink
from kmed.data.audit.near_duplicates import UPRIGHT, nearest_entries
from kmed.data.audit.visual_words import Index, Vocabulary, exact_words, nearest_words, rarities, turned


@pytest.fixture(scope="module")
def scenes():
    """The descriptors of 24 drawn scenes, and of a turned copy of each."""
    originals = [draw_scene(seed, 240, 320) for seed in range(24)]
    copies = [turn(picture, angle=9 + number) for number, picture in enumerate(originals)]
    return [[fingerprint(shrink(picture)).descriptors for picture in some] for some in (originals, copies)]


@pytest.fixture(scope="module")
def vocabulary(scenes):
    return Vocabulary(scenes[0], num_pictures=24)


def test_the_graph_finds_the_nearest_words(scenes, vocabulary, tmp_path):
    pytest.importorskip("usearch", reason="usearch is not installed")
    path = vocabulary.save(tmp_path)
    descriptors = np.concatenate(scenes[1])
    found, exact = nearest_words(path, descriptors), exact_words(vocabulary.words, descriptors)
    assert len(vocabulary) > 300 and found.dtype == exact.dtype == np.int32
    assert (found == exact).mean() > 0.95
    np.testing.assert_array_equal(nearest_words(vocabulary.save(tmp_path), descriptors), found)
    assert nearest_words(path, np.zeros((0, 128), np.uint8)).shape == (0,)


def test_pictures_are_found_through_the_graph_as_by_comparing_all(scenes, vocabulary, tmp_path):
    path = vocabulary.save(tmp_path)
    ranks = []
    for assign in (lambda some: nearest_words(path, some), lambda some: exact_words(vocabulary.words, some)):
        known, new = ([assign(one) for one in some] for some in scenes)
        index = Index(rarities(known, len(vocabulary)))
        index.add(known)
        near = nearest_entries(index, new, UPRIGHT)
        ranks.append([list(entries).index(number) for number, (entries, _) in enumerate(near)])
        assert [UPRIGHT[kinds[0]] for _, kinds in near] == [Variant.PLAIN] * 24
    assert ranks == [[0] * 24] * 2


def test_without_usearch_all_words_are_compared(scenes, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(visual_words, "has_graphs", lambda: False)
    descriptors = scenes[1][0]
    found = nearest_words(vocabulary.save(tmp_path), descriptors)
    np.testing.assert_array_equal(found, exact_words(vocabulary.words, descriptors))


@pytest.mark.parametrize("variant", Variant)
def test_the_words_of_a_mirror_image_or_negative_follow_from_those_of_the_picture(scenes, vocabulary, variant):
    descriptors = scenes[0][0]
    words = exact_words(vocabulary.words, descriptors)
    np.testing.assert_array_equal(vocabulary.words[turned(words, variant)], vocabulary.words[words][:, variant.columns])
    found = exact_words(vocabulary.words, descriptors[:, variant.columns])
    assert (found == turned(words, variant)).mean() > 0.98  # two words may be equally near


def test_the_words_grow_with_the_pictures(scenes):
    sizes = [len(Vocabulary(scenes[0] * 40, number)) for number in (24, 2000)]
    assert sizes[1] > 2 * sizes[0]


def test_the_similarity_is_the_cosine_of_weighted_counts():
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 50, rng.integers(1, 40)).astype(np.int32) for _ in range(90)] + [np.zeros(0, np.int32)]
    rarity = rng.uniform(0.1, 3, 50).astype(np.float32)
    dense = np.stack([np.sqrt(np.bincount(one, minlength=50)) * rarity for one in words])
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-6)
    index = Index(rarity)
    assert index.similar(words[:2]).shape == (2, 0)
    for start in range(0, len(words), 7):  # blocks join one another in between
        index.add(words[start : start + 7])
    index.add([])
    assert len(index) == 91 and len(index._blocks) <= 4
    np.testing.assert_allclose(index.similar(words[:9]).toarray(), dense[:9] @ dense.T, atol=1e-6)


def test_of_many_entries_the_nearest_are_enough():
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 40, 30).astype(np.int32) for _ in range(60)]
    index = Index(rarities(words, 40))
    index.add(words)
    all_of_them, some = (nearest_entries(index, words, UPRIGHT, wanted)[5] for wanted in (1000, 12))
    assert 12 <= len(some[0]) < len(all_of_them[0])
    for whole, part in zip(all_of_them, some):
        np.testing.assert_array_equal(whole[: len(part)], part)
    assert some[0][0] == 5


def test_rare_words_weigh_more():
    found = rarities([np.array([0, 0, 1]), np.array([0])], 3)
    assert 0 < found[0] < found[1] < found[2]
