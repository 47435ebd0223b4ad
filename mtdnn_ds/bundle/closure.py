"""Which wheels a node lacks: a walk from the project's requirements along what each wheel asks for.

No resolver: of each package the newest release is taken that fits all ranges found so far, and another one
when a later range excludes it. What the node has is trusted to have its own requirements there.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from mtdnn_ds.bundle.node import Node
from mtdnn_ds.bundle.wheels import NoWheel, Wheel
from mtdnn_ds.config.errors import ConfigError

# Gigabytes, and made for the node's driver.
_OF_THE_NODE = ("torch", "triton", "pytorch-triton")
_OF_CUDA = ("nvidia-", "cuda-")
# torch and others on the node are compiled against theirs.
_COMPILED_AGAINST = ("numpy",)

Fetch = Callable[[str, SpecifierSet], Wheel]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A requirement, and who has it."""

    requirement: Requirement
    by: str

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


@dataclass(kw_only=True, slots=True)
class Closure:
    """What was found. Names are canonical."""

    wheels: dict[str, Wheel] = field(default_factory=dict)
    of_the_node: dict[str, Version] = field(default_factory=dict)  # needed, there, and in a version that fits
    replaced: dict[str, Version] = field(default_factory=dict)  # there, in a version that does not fit


class _Ranges:
    """All ranges that were asked for of each package, and by whom."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[str, SpecifierSet]] = defaultdict(dict)

    def add(self, asked: Asked) -> SpecifierSet:
        """The range that fits everybody who has asked so far."""
        ranges = self._by_name[asked.name]
        ranges[asked.by] = ranges.get(asked.by, SpecifierSet()) & asked.requirement.specifier

        together = SpecifierSet()
        for part in ranges.values():
            together &= part
        return together

    def said(self, name: str) -> str:
        """`mtdnn_ds needs >=2.9,<3, datasets needs <2.12`."""
        ranges = self._by_name[name]
        return ", ".join(f"{by} needs {part or 'it'}" for by, part in ranges.items())


def find_closure(requirements: Sequence[Asked], node: Node, fetch: Fetch) -> Closure:
    """The wheels that `requirements` and all they ask for need beside what the node has.

    Raises ConfigError with everything that cannot be had.
    """
    _check_packages_of_the_node(requirements, node)

    walk = _Walk(node, fetch)
    walk.queue.extend(asked for asked in requirements if _applies(asked.requirement, walk.environment, ""))
    while walk.queue:
        asked = walk.queue.popleft()
        walk.take(asked)

    if walk.problems:
        raise ConfigError(list(walk.problems.values()))
    closure = walk.closure
    closure.replaced = {name: node.installed[name] for name in closure.wheels if name in node.installed}
    return closure


class _Walk:
    """What is known on the way, and what is still to be looked at."""

    def __init__(self, node: Node, fetch: Fetch) -> None:
        self.node, self.fetch = node, fetch
        self.environment = node.marker_environment()
        self.queue: deque[Asked] = deque()
        self.closure = Closure()
        self.problems: dict[str, str] = {}  # by package: one is enough
        self._ranges = _Ranges()
        self._extras: dict[str, set[str]] = defaultdict(set)

    def take(self, asked: Asked) -> None:
        """Find what answers a requirement, and queue what that asks for itself."""
        name = asked.name
        wanted = self._ranges.add(asked)
        new_extras = asked.requirement.extras - self._extras[name]
        self._extras[name] |= new_extras

        problem = _problem_of_the_node(name, wanted, self.node, self._ranges)
        if problem is not None:
            self.problems.setdefault(name, problem)
        if name in self.problems:
            return

        wheel, installed = self.closure.wheels.get(name), self.node.installed.get(name)
        if wheel is None and installed is not None and _fits(installed, wanted):
            self.closure.of_the_node[name] = installed
            if new_extras:
                # The list says nothing of what an extra asks for: the same release on the index does.
                release = self._fetched(name, SpecifierSet(f"=={installed.public}"))
                self._queue_extras(name, release, new_extras)
        elif wheel is None or not _fits(wheel.version, wanted):
            self._bundle(name, wanted)
        else:
            self._queue_extras(name, wheel, new_extras)

    def _bundle(self, name: str, wanted: SpecifierSet) -> None:
        """Take a wheel, in place of an earlier one or of what the node has."""
        wheel = self._fetched(name, wanted)
        if wheel is None:
            return

        self.closure.wheels[name] = wheel
        self.closure.of_the_node.pop(name, None)
        for requirement in wheel.requires:
            if _applies(requirement, self.environment, ""):
                self.queue.append(Asked(requirement=requirement, by=name))
        self._queue_extras(name, wheel, self._extras[name])

    def _queue_extras(self, name: str, wheel: Wheel | None, extras: Iterable[str]) -> None:
        """What a wheel asks for with these extras, and not without them."""
        if wheel is None:
            return

        for extra in sorted(extras):
            for requirement in wheel.requires:
                if _applies(requirement, self.environment, ""):
                    continue
                if _applies(requirement, self.environment, extra):
                    self.queue.append(Asked(requirement=requirement, by=f"{name}[{extra}]"))

    def _fetched(self, name: str, wanted: SpecifierSet) -> Wheel | None:
        try:
            return self.fetch(name, wanted)
        except NoWheel as refused:
            what = f"no wheel of {name}{wanted} for Python {self.node.python} on {self.node.platform}"
            self.problems[name] = f"{what} ({self._ranges.said(name)}): {refused}"
            return None


# What the node must have itself


def _stays(name: str) -> bool:
    """Whether a package is never bundled."""
    return name in _OF_THE_NODE or name.startswith(_OF_CUDA)


def _check_packages_of_the_node(requirements: Iterable[Asked], node: Node) -> None:
    """Raises ConfigError with all that the project asks for itself and a bundle cannot bring.

    Before anything is fetched.
    """
    problems, ranges = [], _Ranges()
    for asked in requirements:
        problem = _problem_of_the_node(asked.name, ranges.add(asked), node, ranges)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ConfigError(problems)


def _problem_of_the_node(name: str, wanted: SpecifierSet, node: Node, ranges: _Ranges) -> str | None:
    if name in node.without_version and name not in node.installed:
        return (
            f"--installed: {name} stands there without a version; make the list on the node with: "
            "python3 -m pip list --format=freeze"
        )

    installed = node.installed.get(name)
    if _stays(name) and installed is None:
        return (
            f"--installed: {name} is not in the list ({ranges.said(name)}); a bundle never brings torch and "
            "CUDA packages (gigabytes, made for the node's driver): install it on the node, then list again "
            "what is installed there"
        )
    if installed is None or _fits(installed, wanted):
        return None

    if _stays(name):
        return (
            f"--installed: {name} is {installed} ({ranges.said(name)}); a bundle never brings torch and CUDA "
            "packages: install another version on the node, then list again"
        )
    if name in _COMPILED_AGAINST:
        return (
            f"--installed: {name} is {installed} ({ranges.said(name)}); other packages of the node are "
            "compiled against it, and would fail with another one: install another version there, then list "
            "again"
        )
    return None


def _applies(requirement: Requirement, environment: dict[str, str], extra: str) -> bool:
    """Whether a requirement is one on the node, with an extra or ("") without any."""
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


def _fits(version: Version, wanted: SpecifierSet) -> bool:
    """Whatever is installed counts, if it is a release or not (2.11.0a0+nv26 of NVIDIA's images)."""
    return wanted.contains(version, prereleases=True)
