import sys

import old_configs
import pytest

from audiovae_jax.errors import ConfigError
from audiovae_jax.torch_io.migration import hydra_tree, interpolation, yaml_files


def _compose(folder, files, *overrides, others=()):
    main = old_configs.write(folder, files)
    return hydra_tree.compose([main, *(folder / name for name in others)], list(overrides)).values


def test_the_position_of_self_sets_the_precedence(tmp_path):
    child = {"db/a.yaml": "x: 1\ny: 2"}
    assert _compose(tmp_path / "1", {"m.yaml": "defaults: [_self_, db: a]\ndb: {x: 0}", **child}) == {
        "db": {"x": 1, "y": 2}
    }
    for listed in ("[db: a, _self_]", "[db: a]"):  # as Hydra since 1.1
        assert _compose(tmp_path / "2", {"m.yaml": f"defaults: {listed}\ndb: {{x: 0}}", **child}) == {
            "db": {"x": 0, "y": 2}
        }


def test_groups_nest_and_packages_place(tmp_path):
    files = {
        "m.yaml": "defaults: [model: big, db@copy: a, db@_global_: a, /db@model.inner: a, extra]",
        "model/big.yaml": "defaults: [opt: adam, /db: a, near]\nwidth: 3",
        "model/near.yaml": "near: yes",
        "model/opt/adam.yaml": "lr: 1",
        "db/a.yaml": "x: 1",
        "extra.yaml": "# @package over.there\nz: 1",
    }
    assert _compose(tmp_path, files) == {
        "model": {"opt": {"lr": 1}, "db": {"x": 1}, "near": True, "width": 3, "inner": {"x": 1}},
        "copy": {"x": 1},
        "x": 1,
        "over": {"there": {"z": 1}},
    }


def test_choices_are_changed_by_experiments_files_and_the_command_line(tmp_path):
    files = {
        "m.yaml": "defaults: [_self_, db: a, optional exp: none]\nn: 1",
        "db/a.yaml": "x: a",
        "db/b.yaml": "x: b",
        "db/c.yaml": "x: ${n}",
        "exp/e.yaml": "# @package _global_\ndefaults: [override /db: b]\nn: 2",
        "part.yaml": "n: 3",
    }
    assert _compose(tmp_path, files) == {"db": {"x": "a"}, "n": 1}
    assert _compose(tmp_path, files, "exp=e") == {"db": {"x": "b"}, "n": 2}
    assert _compose(tmp_path, files, "exp=e", "db=c", "n=7", "+k.j=[1, 2]", "~db.x") == {
        "db": {}, "n": 7, "k": {"j": [1, 2]},
    }  # fmt: skip
    assert _compose(tmp_path, files, "db=null") == {"n": 1}
    assert _compose(tmp_path, files, others=["db/b.yaml", "part.yaml"]) == {"db": {"x": "b"}, "n": 3}


@pytest.mark.parametrize(
    ("files", "overrides", "says"),
    [
        ({"m.yaml": "defaults: [db: mysq]", "db/mysql.yaml": ""}, (), "did you mean 'mysql'?; there are mysql"),
        ({"m.yaml": "defaults:\n  - db: ???"}, (), "db has no value"),
        ({"m.yaml": "defaults: [a]", "a.yaml": "defaults: [m]"}, (), "circle: m.yaml -> a.yaml -> m.yaml"),
        ({"m.yaml": "defaults: {a: b}"}, (), "defaults must be a list"),
        ({"m.yaml": "defaults: [{a: 1, b: 2}]"}, (), "is neither a config's name"),
        ({"m.yaml": "defaults: [db: ../../secret]", "db/a.yaml": ""}, (), "there is no db/../../secret.yaml"),
        ({"m.yaml": "a: 1"}, ("nothing",), "is neither a file nor KEY=VALUE"),
        ({"m.yaml": "a: [1"}, (), "m.yaml, line 1: invalid YAML"),
        ({"m.yaml": "a: 1\na: 2"}, (), "m.yaml, line 2: invalid YAML: the key 'a' occurs twice"),
        ({"m.yaml": "a: !!python/object/apply:os.system ['touch x']"}, (), "could not determine a constructor"),
        ({"m.yaml": "- 1"}, (), "contains a list"),
        ({"m.yaml": "defaults: [db: '${nothing}']"}, (), "the group 'nothing' has no choice"),
    ],
)
def test_invalid_trees_are_errors(tmp_path, monkeypatch, files, overrides, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        _compose(tmp_path, files, *overrides)
    assert says in str(raised.value)
    assert not (tmp_path / "x").exists()


def test_files_that_are_no_configs_are_refused(tmp_path):
    path = tmp_path / "m.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        yaml_files.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        yaml_files.read(path)
    laughs = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    path.write_text(laughs)
    with pytest.raises(ConfigError, match="expands to more than"):
        yaml_files.read(path)
    path.write_text("a: [" * 5000)
    with pytest.raises(ConfigError, match="invalid YAML"):
        yaml_files.read(path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "outside.yaml").write_text("x: 1")
    main = old_configs.write(tmp_path / "in", {"m.yaml": "defaults: [db: a]", "db/b.yaml": ""})
    (tmp_path / "in" / "db" / "a.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(ConfigError, match="lies outside"):
        hydra_tree.compose([main], [])


def test_numbers_and_dates_are_as_hydra_reads_them():
    assert yaml_files.parse("[1e-4, 1.5E3, 1.0e4, .5e1, 1, 1.0, 2026-01-01, 'x', null, true]", "here") == [
        1e-4, 1500.0, 1e4, 5.0, 1, 1.0, "2026-01-01", "x", None, True,
    ]  # fmt: skip


def test_interpolations(monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    resolved = interpolation.resolve(
        {
            "a": {"b": 2, "c": "${.b}", "d": "${..e}", "f": {"g": "${...e}"}},
            "e": [10, {"k": "${a.b}"}],
            "text": "${a.b}-${e[0]}-${e.1.k}",
            "nested": "${a.${name}}",
            "name": "b",
            "whole": "${a.f}",
            "default": "${oc.env:SECRET,7}",
            "kept": r"\${a.b}",
            "open": "${oc.env:SECRET}",
            "far": "${nothing.there}",
            "in_text": "x ${now:%Y}",
        }
    )
    assert resolved["a"] == {"b": 2, "c": 2, "d": [10, {"k": 2}], "f": {"g": [10, {"k": 2}]}}
    assert (resolved["text"], resolved["nested"], resolved["default"]) == ("2-10-2", 2, 7)
    assert resolved["whole"] == {"g": [10, {"k": 2}]}
    assert resolved["kept"] == "${a.b}"
    for key in ("open", "far", "in_text"):
        assert isinstance(resolved[key], interpolation.Unresolved)
    assert "told" not in str(resolved)


@pytest.mark.parametrize(
    "values",
    [{"a": "${b}", "b": "${a}"}, {"a": "${a}"}, {"a": {"b": "${a}"}}, {"a": {"x": "${b}"}, "b": {"y": "${a}"}}],
)
def test_circles_are_errors(values):
    with pytest.raises(ConfigError, match="circle: .*a"):
        interpolation.resolve(values)


def test_references_that_expand_without_end_are_errors():
    lists = {"x0": [1] * 10, **{f"x{i}": [f"${{x{i - 1}}}"] * 10 for i in range(1, 7)}}
    with pytest.raises(ConfigError, match="expands to more than"):
        interpolation.resolve(lists)
    texts = {"x0": "1234567890", **{f"x{i}": f"${{x{i - 1}}}" * 10 for i in range(1, 7)}}
    with pytest.raises(ConfigError, match="grows without end"):
        interpolation.resolve(texts)
    chain = {f"x{i}": f"${{x{i + 1}}}" for i in range(5000)}
    with pytest.raises(ConfigError, match="too deeply"):
        interpolation.resolve(chain)


def test_a_config_imports_no_module_and_reads_no_variable(monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    monkeypatch.delitem(sys.modules, "this", raising=False)
    values = {"a": "${oc.coerce:this.d,1}", "b": "${oc.env:SECRET}", "c": "${oc.decode:${oc.env:SECRET}}"}
    assert interpolation.resolve(values) == values
    assert "this" not in sys.modules
