"""The folder of the demo data: drawn whole, and by one process at a time as far as a reader can tell."""

from kmed.data.demo.folder import drawing, is_drawn


def test_what_another_process_has_drawn_meanwhile_stays(tmp_path):
    with drawing(tmp_path / "demo", {"seed": 0}) as ours:
        (ours / "ours.png").touch()
        with drawing(tmp_path / "demo", {"seed": 0}) as theirs:
            (theirs / "theirs.png").touch()
        reader = (tmp_path / "demo").stat().st_ino
    assert is_drawn(tmp_path / "demo", {"seed": 0})
    assert (tmp_path / "demo").stat().st_ino == reader and (tmp_path / "demo" / "theirs.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_other_demo_data_and_damaged_ones_are_replaced(tmp_path):
    for number, seed in enumerate((0, 1, 1)):
        with drawing(tmp_path / "demo", {"seed": seed}) as temporary:
            (temporary / f"{number}.png").touch()
        assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [f"{number}.png", "demo.json"]
