import importlib
import sys

import pytest

from osrl_unlearn.errors import EnvironmentProblem
from osrl_unlearn.hooks.patching import Patch, PatchSet

SOURCE = '''
class Base:
    def go(self, x, y=1):
        """Doc of go."""
        return ("go", x, y)

    def inherited(self):
        return "inherited"

    @staticmethod
    def still(x):
        return ("still", x)

    @classmethod
    def kind(cls, x):
        return (cls.__name__, x)

    number = 3
    Other = int


class Child(Base):
    def go(self, x, y=1):
        return ("child",) + super().go(x, y)


def plain(x):
    return x
'''


@pytest.fixture
def lib(tmp_path, monkeypatch):
    """A module ``toylib``; at the end its classes must hold the very objects that they held at first."""
    (tmp_path / "toylib.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    module = importlib.import_module("toylib")
    before = entries(module)
    yield module
    sys.modules.pop("toylib", None)
    assert entries(module) == before


def entries(module):
    """Identities of everything in the module's classes and in the module."""
    found = {(owner.__name__, name): id(value) for owner in (module.Base, module.Child)
             for name, value in vars(owner).items()}
    found["plain"] = id(vars(module)["plain"])
    return found


def mark(original, *args, **kwargs):
    return ("around", original(*args, **kwargs))


def test_method(lib):
    early = lib.Base  # scripts bind classes before or after the patch
    patch = Patch("toylib:Base.go", mark, parameters=("self", "x"))
    assert not patch.installed
    patch.apply()
    patch.apply()
    assert patch.installed
    assert early().go(1, y=2) == ("around", ("go", 1, 2))
    assert lib.Child().go(1) == ("child", "around", ("go", 1, 1))
    assert lib.Base.go.__doc__ == "Doc of go." and lib.Base.go.__name__ == "go"
    assert patch.undo() == []
    assert patch.undo() == []
    assert early().go(1) == ("go", 1, 1)


def test_arguments_of_around(lib):
    seen = []

    def around(original, self, x, *args, **kwargs):
        seen.append((self, x, args, kwargs))
        return original(self, x + 1, *args, **kwargs)

    base = lib.Base()
    with PatchSet([Patch("toylib:Base.go", around)]):
        assert base.go(1, y=5) == ("go", 2, 5)
    assert seen == [(base, 1, (), {"y": 5})]


@pytest.mark.parametrize("name, expected", [("still", ("still", 1)), ("kind", ("Child", 1))])
def test_static_and_class_methods(lib, name, expected):
    raw = vars(lib.Base)[name]
    with PatchSet([Patch("toylib:Base." + name, mark)]):
        assert type(vars(lib.Base)[name]) is type(raw)
        for owner in (lib.Child, lib.Child()):
            assert getattr(owner, name)(1) == ("around", expected)
    assert vars(lib.Base)[name] is raw
    assert getattr(lib.Child(), name)(1) == expected


def test_function_of_a_module(lib):
    with PatchSet([Patch("toylib:plain", mark)]):
        assert lib.plain(1) == ("around", 1)
    assert lib.plain(1) == 1


@pytest.mark.parametrize("target, parameters, text", [
    ("toylib:Child.inherited", (), "inherited"),
    ("toylib:Base.gone", (), "not there"),
    ("toylib:Gone.go", (), "no 'Gone'"),
    ("toylib:Base.number", (), "not a function"),
    ("toylib:Base.Other", (), "not a function"),
    ("toylib:Base.go", ("self", "data"), r"its parameters are \(self, x, y\), expected \(self, data, ...\)"),
    ("toylib_gone:Base.go", (), "cannot be imported"),
])
def test_seams_that_have_moved_are_refused(lib, target, parameters, text):
    with pytest.raises(EnvironmentProblem, match=text) as error:
        Patch(target, mark, parameters).apply()
    assert target in str(error.value) and "The installed toylib" in str(error.value)


@pytest.mark.parametrize("target", ["toylib", "toylib:", ":Base.go", "toylib:Base."])
def test_malformed_targets(target):
    with pytest.raises(ValueError, match="pkg.mod:Class.attr"):
        Patch(target, mark)


def test_a_later_patch_of_others_stays(lib):
    raw = vars(lib.Base)["go"]
    patch = Patch("toylib:Base.go", mark)
    patches = PatchSet([patch])
    with patches:
        ours = lib.Base.go

        def theirs(self, x, y=1):
            return ("theirs", ours(self, x, y))

        lib.Base.go = theirs
        assert lib.Base().go(1) == ("theirs", ("around", ("go", 1, 1)))
    assert lib.Base.go is theirs
    assert lib.Base().go(1) == ("theirs", ("go", 1, 1))
    assert len(patches.notes) == 1 and "toylib:Base.go" in patches.notes[0]
    # The wrapper that was left behind stays off when the patch is installed again.
    patch.apply()
    assert lib.Base().go(1) == ("around", ("theirs", ("go", 1, 1)))
    assert patch.undo() == []
    lib.Base.go = raw


def test_deleted_by_others(lib):
    raw = vars(lib.Child)["go"]
    patch = Patch("toylib:Child.go", mark)
    patch.apply()
    del lib.Child.go
    assert len(patch.undo()) == 1
    assert "go" not in vars(lib.Child)
    lib.Child.go = raw


def test_two_patches_on_one_method(lib):
    with PatchSet([Patch("toylib:Base.go", mark), Patch("toylib:Base.go", lambda original, *args: original(*args))]):
        assert lib.Base().go(1) == ("around", ("go", 1, 1))


@pytest.mark.parametrize("error", [None, ValueError, SystemExit, KeyboardInterrupt])
def test_undone_however_the_block_ends(lib, error):
    before = entries(lib)
    patches = PatchSet([Patch("toylib:Base." + name, mark) for name in ("go", "still", "kind")])
    try:
        with patches:
            patches.add(Patch("toylib:Child.go", mark))
            assert entries(lib) != before
            if error:
                raise error("stop")
    except (ValueError, SystemExit, KeyboardInterrupt) as caught:
        assert type(caught) is error
    assert entries(lib) == before
    assert patches.undo() == []


def test_half_failed_installs_are_rolled_back(lib):
    before = entries(lib)
    patches = PatchSet([Patch("toylib:Base.go", mark), Patch("toylib:Base.gone", mark)])
    patches.when_imported("toylib_later", [Patch("toylib_later:Base.go", mark)])
    finders = list(sys.meta_path)
    with pytest.raises(EnvironmentProblem):
        with patches:
            raise AssertionError("never reached")
    assert entries(lib) == before
    assert len(sys.meta_path) == len(finders) - 1  # what was pending is dropped, too

    with PatchSet([Patch("toylib:Base.still", mark)]) as patches:
        one = entries(lib)
        with pytest.raises(EnvironmentProblem):
            patches.add(Patch("toylib:Base.go", mark), Patch("toylib:Child.inherited", mark))
        assert entries(lib) == one != before
    assert entries(lib) == before


def test_apply_twice_and_again_after_undo(lib):
    patches = PatchSet([Patch("toylib:Base.go", mark)])
    for _ in range(2):
        patches.apply()
        patches.apply()
        assert lib.Base().go(1) == ("around", ("go", 1, 1))
        patches.undo()
        assert lib.Base().go(1) == ("go", 1, 1)


def test_when_imported(lib, monkeypatch):
    monkeypatch.delitem(sys.modules, "toylib")
    finders = list(sys.meta_path)
    with PatchSet() as patches:
        patches.when_imported("toylib", [Patch("toylib:Base.go", mark)])
        assert "toylib" not in sys.modules
        import toylib
        assert toylib.Base().go(1) == ("around", ("go", 1, 1))
        patches.when_imported("toylib", [Patch("toylib:Base.still", mark)])
        assert toylib.Base.still(1) == ("around", ("still", 1))
        patches.when_imported("toylib_never", [Patch("toylib_never:Base.go", mark)])
    assert toylib.Base().go(1) == ("go", 1, 1) and toylib.Base.still(1) == ("still", 1)
    assert sys.meta_path == finders


def test_when_imported_refuses_as_a_whole(lib, monkeypatch):
    monkeypatch.delitem(sys.modules, "toylib")
    with PatchSet() as patches:
        patches.when_imported("toylib", [Patch("toylib:Base.go", mark), Patch("toylib:Base.gone", mark)])
        with pytest.raises(EnvironmentProblem, match="toylib:Base.gone"):
            import toylib  # noqa: F401
        assert "toylib" not in sys.modules
