"""Reads the parameters of a class or function from its source code, without importing its package."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

NUMBER = re.compile(r"(Optional\[)?(int|float|None)( \| (int|float|None))*\]?")
"""Annotations of numbers, such as `int | None`. A string is never valid for such an argument."""


class Definition(NamedTuple):
    """A class or function in the source code of a module."""

    node: ast.ClassDef | ast.FunctionDef
    module: str


class UnknownName(Exception):  # noqa: N818 - the caller turns it into an error
    """A dotted path that names nothing."""


def parameters_of(target: str, *, follow_kwargs: bool = False) -> set[str] | None:
    """Return the names of the keyword arguments that a dotted path accepts; `None` if it accepts any or is unknown.

    Args:
        target: dotted path of a class or function.
        follow_kwargs: whether a constructor with `**kwargs` passes them to the next base class.

    Raises:
        UnknownName: if the module has no such name. The message is that part of the path.

    """
    found = find(target)
    if found is None:
        return None
    if isinstance(found.node, ast.FunctionDef):
        return None if found.node.decorator_list or found.node.args.kwarg else argument_names(found.node)
    return constructor_parameters(found, follow_kwargs=follow_kwargs)


def constructor_parameters(found: Definition, *, follow_kwargs: bool) -> set[str] | None:
    """Return the parameters of the constructor of a class or of its base classes; `None` if they are unknown."""
    if not isinstance(found.node, ast.ClassDef) or (found.node.decorator_list and not follow_kwargs):
        return None
    methods = {one.name: one for one in found.node.body if isinstance(one, ast.FunctionDef)}
    init = methods.get("__init__")
    if "__new__" in methods and not follow_kwargs:
        return None
    if init is not None and not init.args.kwarg:
        return argument_names(init, num_skipped=1)
    if init is not None and not follow_kwargs:
        return None
    own = argument_names(init, num_skipped=1) if init else set()
    for base in found.node.bases:
        name = ast.unparse(base).partition("[")[0]
        try:
            resolved = None if name in dir(builtins) else find_in_module(found.module, name.split("."))
        except UnknownName:
            return None
        inherited = constructor_parameters(resolved, follow_kwargs=follow_kwargs) if resolved else None
        if inherited is None and name != "object":
            return None
        if inherited:
            return own | inherited
    return own


def required_names(target: str) -> set[str]:
    """Return the arguments without defaults of a function, or of the `__init__` that a class itself defines."""
    arguments = own_arguments(target)
    if arguments is None:
        return set()
    positional = [*arguments.posonlyargs, *arguments.args]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default]
    return {one.arg for one in required}


def number_names(target: str) -> set[str]:
    """Return the arguments that are annotated as numbers, such as `int | None`, of a function or of an `__init__`."""
    arguments = own_arguments(target)
    every = [*arguments.args, *arguments.kwonlyargs] if arguments else []
    return {one.arg for one in every if one.annotation and NUMBER.fullmatch(ast.unparse(one.annotation))}


def own_arguments(target: str) -> ast.arguments | None:
    """Return the arguments of a function, or those after `self` of the `__init__` that a class itself defines."""
    found = find(target)
    node = found.node if found else None
    is_class = isinstance(node, ast.ClassDef)
    if isinstance(node, ast.ClassDef):
        methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        node = None if node.decorator_list or "__new__" in methods else methods.get("__init__")
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return None
    named = {name: getattr(node.args, name) for name in ast.arguments._fields}
    first = "posonlyargs" if node.args.posonlyargs else "args"
    return ast.arguments(**named | {first: named[first][is_class:]})


def argument_names(function: ast.FunctionDef, num_skipped: int = 0) -> set[str]:
    """Return the names of the parameters of a function that may be passed by name."""
    arguments = function.args
    return {one.arg for one in [*arguments.args[num_skipped:], *arguments.kwonlyargs]}


def find(target: str) -> Definition | None:
    """Return the definition at a dotted path; `None` if it is unknown, such as code that is written in C.

    Raises:
        UnknownName: if the path names nothing.

    """
    first, *rest = target.split(".")
    try:
        spec = importlib.util.find_spec(first)  # imports nothing
    except (ValueError, ImportError):
        return None
    if spec is None:
        raise UnknownName(first)
    return find_in_module(first, rest) if spec.origin or spec.submodule_search_locations else None


def find_in_module(module: str, names: list[str]) -> Definition | None:
    """Return the definition at a path within a module or package.

    Raises:
        UnknownName: if the path names nothing.

    """
    while names and source_file(f"{module}.{names[0]}"):
        module, names = f"{module}.{names[0]}", names[1:]
    file = source_file(module)
    if not names or file is None or file.suffix != ".py":
        return None
    tree = parse(file)
    has_getattr = any(getattr(one, "name", "") == "__getattr__" for one in statements(tree))
    is_open = has_getattr and (module not in sys.modules or names[0] in dir(sys.modules[module]))
    for node in statements(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == names[0]:
            return Definition(node, module) if len(names) == 1 else None
        if isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) == names[0]:
                    return imported(node, alias, names[1:], module, file)
                is_open |= alias.name == "*"
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.If | ast.Try):
            is_open |= any(isinstance(one, ast.Name) and one.id in (names[0], "globals") for one in ast.walk(node))
    if is_open or not is_folder_complete(file):
        return None
    raise UnknownName(f"{module}.{names[0]}")


def imported(
    node: ast.ImportFrom | ast.Import, alias: ast.alias, rest: list[str], module: str, file: Path
) -> Definition | None:
    """Return the definition that an import statement of `module` refers to."""
    if isinstance(node, ast.Import):
        path = alias.name if alias.asname else alias.name.partition(".")[0]
        return find(".".join([path, *rest]))
    package = module.split(".")
    package = package[: len(package) - node.level + (file.name == "__init__.py")] if node.level else []
    path = ".".join([*package, *(node.module or "").split("."), alias.name, *rest])
    return find(path.replace("..", "."))


def is_folder_complete(file: Path) -> bool:
    """Return whether all submodules of a package are Python files, which `source_file` finds."""
    return file.name != "__init__.py" or not [*file.parent.glob("*.so"), *file.parent.glob("*.pyd")]


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those in `if` and `try`; the last definition of a name first."""
    pending: list[ast.stmt] = [*tree.body]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If | ast.Try):
            pending += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
            pending += [one for handler in getattr(node, "handlers", []) for one in handler.body]


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


@cache
def source_file(module: str) -> Path | None:
    """Return the file of a module, or of its `__init__.py`, without importing its parent packages."""
    first, *names = module.split(".")
    spec = importlib.util.find_spec(first)
    if spec is None or not names:
        return Path(spec.origin) if spec and spec.origin else None
    for folder in map(Path, spec.submodule_search_locations or ()):
        path = folder.joinpath(*names)
        for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if file.is_file():
                return file
    return None
