"""Attributes that a library has otherwise for a while."""

import types

import pytest

from snapgen_deploy.export.shared.replaced import replaced


class Parent:
    @staticmethod
    def name() -> str:
        return "parent"


class Child(Parent):
    @staticmethod
    def own() -> str:
        return "child"


def test_an_inherited_attribute_is_inherited_again():
    with replaced(Child, "name", staticmethod(lambda: "ours")):
        assert Child.name() == "ours"
        assert Parent.name() == "parent"
    assert Child.name() == "parent"
    assert "name" not in vars(Child)


def test_a_static_method_stays_static_and_errors_put_it_back():
    with pytest.raises(ZeroDivisionError), replaced(Child, "own", None):
        assert Child.own is None
        raise ZeroDivisionError
    assert isinstance(vars(Child)["own"], staticmethod)
    assert Child.own() == "child"


def test_an_attribute_of_a_module_that_is_none_comes_back():
    module = types.ModuleType("m")
    module.value = None
    with replaced(module, "value", 3):
        assert module.value == 3
    assert module.value is None
    assert "value" in vars(module)
