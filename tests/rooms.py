"""Reads the import statements of a source tree and tells which of them leave the room they stand in.

Works on text alone: nothing is imported, so a tree that does not even run can be judged. Knows the table of
who may import whom; `test_rooms.py` holds it against this repository and against trees that break it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OURS = ("engine", "server", "clients", "tests")

# Room -> the rooms of `engine` it may import. The longest matching name is a module's room. A room may always
# import itself; `engine` is the face (engine/__init__.py), which may show anything.
_NOUNS = frozenset({"engine.core", "engine.logprobs", "engine.config", "engine.errors", "engine.observer"})
_TEXT = frozenset({"engine.tokenizer", "engine.sampler"})
_EVERYTHING_BELOW = (
    _NOUNS
    | _TEXT
    | {
        "engine.scheduler",
        "engine.runner",
        "engine.live",
        "engine.loop",
        "engine.admission",
        "engine.archive",
        "engine.chats",
        "engine.following",
        "engine.generations",
        "engine.grounds",
        "engine.handover",
        "engine.health",
        "engine.seen_through",
        "engine.turns",
        "engine.turnstile",
        "engine.views",
        "engine.model",
        "engine.sessions",
        "engine.consolidation",
    }
)
MAY_IMPORT: dict[str, frozenset[str]] = {
    "engine.errors": frozenset(),
    "engine.config": frozenset({"engine.errors"}),
    "engine.logprobs": frozenset(),
    "engine.core": frozenset({"engine.logprobs", "engine.config", "engine.errors"}),
    "engine.observer": frozenset({"engine.core"}),
    "engine.tokenizer": _NOUNS,
    "engine.from_file": _NOUNS,
    "engine.sampler": _NOUNS | {"engine.tokenizer"},
    "engine.scheduler": _NOUNS,
    "engine.model": _NOUNS | {"engine.tokenizer"},
    "engine.sessions": _NOUNS,
    "engine.runner": _NOUNS | _TEXT | {"engine.scheduler", "engine.model"},
    "engine.live": _NOUNS | _TEXT | {"engine.model"},
    "engine.loop": _NOUNS | _TEXT | {"engine.scheduler", "engine.runner", "engine.live", "engine.model"},
    "engine.turnstile": _NOUNS,
    "engine.archive": _NOUNS | {"engine.model", "engine.sessions"},
    "engine.admission": _NOUNS | {"engine.tokenizer", "engine.sessions"},
    "engine.seen_through": _NOUNS,
    "engine.following": _NOUNS | {"engine.model", "engine.sessions"},
    "engine.generations": _NOUNS | {"engine.sessions"},
    "engine.grounds": _NOUNS | {"engine.seen_through", "engine.following", "engine.model", "engine.sessions"},
    "engine.handover": _NOUNS | {"engine.sessions"},
    "engine.health": _NOUNS | {"engine.admission", "engine.loop", "engine.sessions"},
    "engine.turns": _EVERYTHING_BELOW,
    "engine.chats": _NOUNS | {"engine.turns", "engine.sessions"},
    "engine.views": _NOUNS | {"engine.live", "engine.model", "engine.sessions"},
    "engine.consolidation": _NOUNS | _TEXT | {"engine.following", "engine.model", "engine.sessions"},
    "engine.training": _NOUNS | _TEXT | {"engine.model", "engine.evaluation", "engine.from_file"},
    "engine.evaluation": _EVERYTHING_BELOW | {"engine.engine", "engine.training", "engine.from_file"},
    "engine.rereading": _NOUNS | _TEXT | {"engine.live", "engine.loop", "engine.model", "engine.sessions"},
    "engine.relearning": _EVERYTHING_BELOW | {"engine.rereading"},
    "engine.engine": _EVERYTHING_BELOW,
    "engine": _EVERYTHING_BELOW | {"engine.engine", "engine.relearning", "engine.training", "engine.evaluation"},
    "server": frozenset({"engine"}),
    "clients": frozenset(),
}

# Room -> packages of others that it must not know.
MUST_NOT_KNOW: dict[str, frozenset[str]] = {
    "engine": frozenset({"fastapi", "starlette", "uvicorn", "websockets", "httpx2", "prometheus_client"}),
    "server": frozenset({"torch", "safetensors", "tokenizers"}),
}

# Module or package -> what it must not even reach through what it imports.
MUST_NOT_REACH: dict[str, frozenset[str]] = {
    "engine.scheduler": frozenset({"torch", "numpy", "redis"}),
    "engine.sessions": frozenset({"engine.model"}),
    "engine.model": frozenset({"engine.sessions", "redis"}),
    "engine.loop": frozenset({"engine.sessions", "redis"}),
    "engine.core": frozenset({"torch"}),
    "engine.logprobs": frozenset({"torch"}),
}


@dataclass(frozen=True)
class Import:
    """One imported module, or one name taken from it.

    Attributes:
        module: dotted name of what is imported.
        name: the name after `from module import`; empty for a plain import.
        line: where it stands.
        runtime: False inside `if TYPE_CHECKING:`.
    """

    module: str
    name: str
    line: int
    runtime: bool

    @property
    def dotted(self) -> str:
        """The module with the name, which may itself be a module."""
        return f"{self.module}.{self.name}" if self.name else self.module


class Tree:
    """The Python modules under a folder, by dotted name, and what each imports."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, Path] = {}
        for package in OURS:
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.imports = {module: list(_read_imports(module, path)) for module, path in self.files.items()}

    def target(self, imported: Import) -> str:
        """The module of ours that an import loads, or the outer name as written."""
        return imported.dotted if imported.dotted in self.files else imported.module

    def reached_from(self, module: str) -> dict[str, str]:
        """Everything that loading a module loads, each with the module that asks for it.

        The face, engine/__init__.py, is left out: Python runs it before any module of the package, whatever
        that module asks for.
        """
        reached: dict[str, str] = {}
        waiting = [module]
        while waiting:
            current = waiting.pop()
            for imported in self.imports.get(current, []):
                target = self.target(imported)
                if imported.runtime and target != "engine" and target not in reached:
                    reached[target] = current
                    waiting.append(target)
        return reached

    def face(self) -> set[str]:
        """The names that engine/__init__.py exports."""
        for node in ast.parse(self.files["engine"].read_text("utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                names = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(name, ast.Name) and name.id == "__all__" for name in names):
                    return set(ast.literal_eval(node.value))
        return set()


def violations(root: Path) -> list[str]:
    """Every broken rule, one sentence each."""
    tree = Tree(root)
    found = [
        f"{module}:{imported.line} {complaint}"
        for module, imports in tree.imports.items()
        if not _within(module, "tests")
        for imported in imports
        for complaint in _judge(tree, module, imported)
    ]
    for start, forbidden in MUST_NOT_REACH.items():
        for module in tree.files:
            if _within(module, start):
                found += [
                    f"{module} reaches {target} through {through}"
                    for target, through in tree.reached_from(module).items()
                    if any(_within(target, name) for name in forbidden)
                ]
    return found


def room_of(module: str) -> str:
    """The room a module stands in; a module that no rule names stands in a room of its own."""
    if module == "engine":
        return module
    rooms = [room for room in MAY_IMPORT if room != "engine" and _within(module, room)]
    return max(rooms, key=len, default=module)


def _judge(tree: Tree, module: str, imported: Import) -> Iterator[str]:
    target = tree.target(imported)
    room = room_of(module)
    if any(_within(target, package) for package in OURS):
        if room not in MAY_IMPORT:
            yield f"stands in no room of the table and imports {target}"
        elif room_of(target) != room and room_of(target) not in MAY_IMPORT[room]:
            yield f"imports {target}, which {room} may not"
        elif room == "server" and target == "engine" and imported.name not in tree.face() | {""}:
            yield f"takes {imported.name}, which engine/__init__.py does not export"
    for knower, packages in MUST_NOT_KNOW.items():
        if _within(module, knower) and any(_within(target, package) for package in packages):
            yield f"imports {target}, which {knower} must not know"


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _read_imports(module: str, path: Path) -> Iterator[Import]:
    syntax = ast.parse(path.read_text("utf-8"), filename=str(path))
    typing_only = {
        id(inner)
        for node in ast.walk(syntax)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(syntax):
        runtime = id(node) not in typing_only
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno, runtime) for alias in node.names)
            face = {alias.asname or alias.name for alias in node.names if alias.name == "engine"}
            yield from (Import("engine", name, line, runtime) for name, line in _taken_from(face, syntax))
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, package)
            yield from (Import(source, alias.name, node.lineno, runtime) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(argument.value, "", node.lineno, runtime)


def _taken_from(packages: set[str], syntax: ast.AST) -> Iterator[tuple[str, int]]:
    """The names read off a package that was imported whole, as in `engine.Engine`."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            yield node.attr, node.lineno


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
