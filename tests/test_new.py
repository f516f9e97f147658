"""`ssl-zoo new` writes files that work, replaces nothing, and says in one sentence what is wrong with a name.

That they train, and pass the contract, is shown by tests/test_readme.py, for the README tells to type it.
"""

import runpy
import sys

import pytest

from ssl_zoo.cli import new, run


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    return tmp_path


def test_a_method_a_recipe_and_a_test_are_written_in_sixty_lines(empty, capsys):
    run(["new", "TwoWordsNCE"])
    files = {path.name: path.read_text() for path in empty.iterdir()}
    assert sorted(files) == ["test_two_words_nce.py", "two_words_nce.py", "two_words_nce.yaml"]
    assert sum(text.count("\n") for text in files.values()) <= 60
    assert max(len(line) for text in files.values() for line in text.splitlines()) <= 120
    assert "ssl-zoo check two_words_nce.TwoWordsNCE" in capsys.readouterr().out


def test_the_written_test_holds_and_would_fail_for_another_loss(empty, monkeypatch):
    run(["new", "Own"])
    monkeypatch.setattr("ssl_zoo.cli.run", lambda arguments: ran.append(arguments))
    ran = []
    tests = {name: one for name, one in runpy.run_path("test_own.py").items() if name.startswith("test_")}
    for one in tests.values():
        one()
    assert ran == [["check", "own.Own"]]
    (empty / "own.py").write_text((empty / "own.py").read_text().replace("mul(4)", "mul(2)"))
    sys.modules.pop("own")
    with pytest.raises(AssertionError):
        runpy.run_path("test_own.py")["test_crowding_is_what_the_equation_gives_at_known_points"]()
    sys.modules.pop("own")


@pytest.mark.parametrize(("name", "sentence"), [
    ("my-method", "'my-method' is not a name that Python takes for a class: MyMethod would be"),
    ("my_module.Align", "'my_module.Align' is not a name that Python takes for a class: MyModuleAlign would be"),
    ("2Fast", "'2Fast' is not a name that Python takes for a class: Fast would be"),
    ("", "'' is not a name that Python takes for a class, such as Align"),
    ("class", "class is a word of Python's own: take another name, such as Align"),
    ("True", "True is a word of Python's own"),
    ("Lambda", "lambda.py cannot be imported, for lambda is a word of Python's own: take another name"),
    ("Method", "Method is a word that the file itself needs"),
    ("align", "a class is written with a capital letter: Align instead of align"),
    ("_x_y", "a class is written with a capital letter: XY instead of _x_y"),
    ("__", "a class is written with a capital letter: Align instead of __"),
    ("SimCLR", "ssl_zoo has a SimCLR already: take another name, or train it with ssl-zoo fit --model SimCLR"),
    ("moco", "ssl_zoo has a MoCo already"),
    ("Torch", "torch.py would hide the module torch, which is there already: take another name"),
    ("Sys", "sys.py would hide the module sys"),
    ("SslZoo", "ssl_zoo.py would hide the module ssl_zoo"),
    ("Quickstart", "quickstart.yaml would hide the recipe quickstart, which is shipped: take another name"),
])
def test_a_wrong_name_is_one_sentence_and_writes_nothing(name, sentence, empty):
    with pytest.raises(SystemExit) as ended:
        run(["new", name])
    assert str(ended.value).startswith(f"ssl-zoo: {sentence}")
    assert not list(empty.iterdir())


@pytest.mark.parametrize("taken", ["own.py", "own.yaml", "test_own.py"])
def test_nothing_that_exists_is_replaced(taken, empty):
    (empty / taken).write_text("mine")
    with pytest.raises(SystemExit, match=f"{taken} is there already, and nothing is replaced"):
        run(["new", "Own"])
    assert [path.name for path in empty.iterdir()] == [taken]
    assert (empty / taken).read_text() == "mine"


def test_the_recipe_is_the_quickstarts_with_the_methods_own_defaults(empty):
    run(["new", "Own"])
    written, shipped = (new.plain_yaml(path) for path in (empty / "own.yaml", new.shipped()["quickstart"]))
    options = shipped["model"]["init_args"]
    assert written["model"] == {"class_path": "own.Own", "init_args": {name: options[name] for name in new.OF_ALL}}
    assert {**written, "model": None} == {**shipped, "model": None}
