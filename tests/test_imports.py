import importlib
import importlib.util
import pickle
import sys
import threading

import pytest

from osrl_unlearn.hooks.imports import on_import


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Write a package ``toypkg`` with a module ``mod``; forget both at the end."""
    package = tmp_path / "toypkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text("class Thing:\n    pass\n\nready = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "toypkg"]:
        del sys.modules[name]
    assert sys.meta_path == finders


def test_called_once_after_execution(toy):
    calls = []
    undo = on_import("toypkg.mod", lambda module: calls.append((module.__name__, module.ready)))
    assert "toypkg" not in sys.modules  # nothing is imported early
    import toypkg  # noqa: F401
    assert calls == []
    import toypkg.mod
    importlib.reload(toypkg.mod)
    assert calls == [("toypkg.mod", True)]
    undo()
    undo()


def test_at_once_if_imported(toy):
    import toypkg.mod
    calls = []
    on_import("toypkg.mod", calls.append)()
    assert calls == [toypkg.mod]


def test_undone_before_the_import(toy):
    calls = []
    other = on_import("toypkg", calls.append)
    on_import("toypkg.mod", calls.append)()
    import toypkg.mod  # noqa: F401
    other()
    assert calls == [toypkg]


def test_several_callbacks_in_order(toy):
    calls = []
    undo = [on_import("toypkg.mod", lambda module, i=i: calls.append(i)) for i in range(3)]
    import toypkg.mod  # noqa: F401
    assert calls == [0, 1, 2]
    for one in undo:
        one()


def test_the_module_looks_untouched(toy):
    import toypkg.mod
    plain_dir, plain = sorted(vars(toypkg.mod)), toypkg.mod.__spec__
    del sys.modules["toypkg.mod"]
    undo = on_import("toypkg.mod", lambda module: None)
    import toypkg.mod as mod
    undo()
    assert sorted(vars(mod)) == plain_dir
    assert mod.__spec__ == plain
    assert type(mod.__loader__) is type(plain.loader) and mod.__loader__ is mod.__spec__.loader
    assert vars(mod.__loader__) == vars(plain.loader)
    assert type(pickle.loads(pickle.dumps(mod.Thing()))) is mod.Thing


def test_find_spec_works_and_does_not_call(toy):
    calls = []
    undo = on_import("toypkg.mod", calls.append)
    spec = importlib.util.find_spec("toypkg.mod")
    assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    assert "ready = True" in spec.loader.get_source("toypkg.mod")
    # A copy loaded by hand is not what others import.
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.ready and calls == []
    assert importlib.util.find_spec("toypkg.no_such") is None
    import toypkg.mod
    assert calls == [toypkg.mod]
    undo()


def test_a_shared_loader_is_put_back(toy, monkeypatch):
    class Loader:
        def create_module(self, spec):
            return None

        def exec_module(self, module):
            module.ready = module.__name__

    class Finder:
        loader = Loader()

        def find_spec(self, name, path=None, target=None):
            return importlib.util.spec_from_loader(name, self.loader) if name.startswith("toypkg.made") else None

    finder = Finder()
    monkeypatch.setattr(sys, "meta_path", [finder] + sys.meta_path)
    calls = []
    undo = on_import("toypkg.made1", lambda module: calls.append(module.ready))
    import toypkg.made1
    import toypkg.made2
    undo()
    assert calls == ["toypkg.made1"]
    for module in (toypkg.made1, toypkg.made2):
        assert module.__loader__ is finder.loader and module.__spec__.loader is finder.loader
    assert vars(finder.loader) == {}
    monkeypatch.undo()


def test_a_failing_module_can_be_imported_again(toy):
    source = toy / "mod.py"
    good = source.read_text()
    source.write_text("raise ValueError('half')  # longer than the good one, so that no cached code fits: {}\n".format(
        "-" * len(good)))
    calls = []
    undo = on_import("toypkg.mod", calls.append)
    with pytest.raises(ValueError, match="half"):
        import toypkg.mod
    assert calls == []
    source.write_text(good)
    importlib.invalidate_caches()
    import toypkg.mod
    assert calls == [toypkg.mod]
    undo()


def test_a_failing_callback_fails_every_import(toy):
    def refuse(module):
        raise RuntimeError("no")

    undo = on_import("toypkg.mod", refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            import toypkg.mod  # noqa: F401
        assert "toypkg.mod" not in sys.modules
    undo()
    import toypkg.mod  # noqa: F401,F811


def test_a_missing_module(toy):
    undo = on_import("toypkg.no_such", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="toypkg.no_such"):
        importlib.import_module("toypkg.no_such")
    undo()


def test_threads(toy):
    names = ["toypkg.part{}".format(i) for i in range(8)]
    for name in names:
        (toy / (name.partition(".")[2] + ".py")).write_text("import toypkg.mod\n")
    calls, errors = [], []
    undo = [on_import(name, lambda module: calls.append(module.__name__)) for name in names + ["toypkg.mod"]]

    def run(name):
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: B902
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in undo:
        one()
    assert not errors and sorted(calls) == sorted(names + ["toypkg.mod"])
