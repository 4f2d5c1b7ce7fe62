"""Task families: templates as data, one YAML file each, checked when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genrec.core.errors import DataError, RecipeError, lookup, nearest
from genrec.tasks.samplers import SAMPLERS
from genrec.tasks.views import FIELDS, LIST_FILTERS

# Slot types and the fields that a template may print of each.
TYPES: dict[str, tuple[str, ...]] = {
    "user": ("name", "profile"),
    "item": FIELDS,
    "items": (),
    "text": (),
    "score": (),
    "answer": (),
    "choices": (),
}


_MARK = "\x1f"


@cache
def _environment() -> jinja2.Environment:
    made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    made.globals.clear()  # a template needs none, and each call to render would copy them
    made.filters |= {name: write for name, (_, write) in LIST_FILTERS.items()}
    return made


@dataclass(frozen=True)
class Template:
    """One wording of a task.

    Attributes:
        id: Unique among all families.
        prompt: Jinja.
        completion: Jinja.
        held_out: Whether no training row is ever written with it.
        needs: ``(slot, field)`` of all that it prints, in order of slots: the field is ``"code"`` for an item's
            identifier, and empty for a slot that has no fields.
        answers_with_code: Whether the completion begins with an identifier.
    """

    id: str
    prompt: str
    completion: str
    held_out: bool
    needs: tuple[tuple[str, str], ...]
    answers_with_code: bool

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, jinja2.Template]:
        made = _environment()
        return made.from_string(self.prompt), made.from_string(self.completion)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def render(self, slots: Mapping[str, Any]) -> tuple[str, str]:
        """Returns prompt and completion; a completion that is text begins with the space before it.

        Raises:
            DataError: If the template asks Jinja for something that is not there.
        """
        prompt, completion = (self._filled(part, slots) for part in self._compiled)
        if not self.answers_with_code and not prompt[-1:].isspace():
            completion = " " + completion
        return prompt, completion

    def render_prompt(self, slots: Mapping[str, Any]) -> str:
        """Returns the prompt alone; errors as ``render``."""
        return self._filled(self._compiled[0], slots)

    def around_title(self) -> tuple[str, str]:
        """Returns what the completion of a template that writes one title has before and after it."""
        before, _, after = self._filled(self._compiled[1], {"target": {"title": _MARK}}).partition(_MARK)
        return before, after

    def _filled(self, part: jinja2.Template, slots: Mapping[str, Any]) -> str:
        try:
            return part.render(slots)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(f"The template {self.id!r} cannot be filled in: {error}") from error


@dataclass(frozen=True)
class Family:
    """Templates of one task over the samples of one sampler.

    Attributes:
        name: Unique.
        about: What it asks, in a sentence.
        source: Where the task comes from.
        samples: Name of the sampler.
        slots: ``{slot: type}`` that its templates may use.
        templates: In the order of the file.
        file: Where it was read.
    """

    name: str
    about: str
    source: str
    samples: str
    slots: dict[str, str]
    templates: tuple[Template, ...]
    file: str

    @property
    def seen(self) -> tuple[Template, ...]:
        """The templates of training rows."""
        return tuple(template for template in self.templates if not template.held_out)

    @property
    def held_out(self) -> tuple[Template, ...]:
        """The zero-shot templates: in evaluation only, on demand."""
        return tuple(template for template in self.templates if template.held_out)

    def select(self, which: str | Sequence[str]) -> tuple[Template, ...]:
        """Returns the templates ``"seen"``, ``"held_out"``, ``"all"``, or those of these ids, in this order.

        Raises:
            RecipeError: If an id is unknown, or there is no template of that kind.
        """
        if isinstance(which, str) and which in ("seen", "held_out", "all"):
            found = {"seen": self.seen, "held_out": self.held_out, "all": self.templates}[which]
        else:
            table = {template.id: template for template in self.templates}
            ids = [which] if isinstance(which, str) else which
            found = tuple(lookup(table, each, f"template of {self.name}") for each in ids)  # type: ignore[misc]
        if not found:
            raise RecipeError(f"The family {self.name!r} has no template of the kind {which!r}.")
        return found

    @property
    def asks_from_history(self) -> Template | None:
        """The first seen template that asks for the next item by its identifier, from identifiers alone."""
        wanted = {("history", "code"), ("target", "code")}
        return next(
            (
                t
                for t in self.seen
                if self.samples == "next_item" and set(t.needs) == wanted and t.answers_with_code
            ),
            None,
        )

    @property
    def asks_for_title(self) -> Template | None:
        """The first seen template that asks for the title of the next item, from titles alone."""
        wanted = {("history", "title"), ("target", "title")}
        return next(
            (
                t
                for t in self.seen
                if self.samples == "next_item" and set(t.needs) == wanted and "target" not in t.prompt
            ),
            None,
        )


def load_families(paths: Sequence[str | Path] = ()) -> dict[str, Family]:
    """Returns ``{name: family}`` of genrec's own families and those in the given YAML files.

    Raises:
        RecipeError: If a file is missing or is no family: not YAML, an unknown or missing key, a sampler, slot, type
            or field that does not exist, a variable that is not declared, broken Jinja, no template, a template id
            twice, or the name of another family. The message names file and template.
    """
    found = dict(_shipped())
    ids = {template.id: family for family in found.values() for template in family.templates}
    for path in map(Path, paths):
        if not path.is_file():
            raise RecipeError(f"There is no family file {str(path)!r} (tasks.files).")
        family = _parse(path.read_text(encoding="utf-8"), str(path))
        if family.name in found:
            raise RecipeError(
                f"{path}: the name {family.name!r} is taken by the family of {found[family.name].file}. Give it "
                "another."
            )
        for template in family.templates:
            if template.id in ids:
                raise RecipeError(
                    f"{path}: the id {template.id!r} is taken by a template of {ids[template.id].file}. Give it another."
                )
            ids[template.id] = family
        found[family.name] = family
    return found


@cache
def _shipped() -> dict[str, Family]:
    folder = files("genrec.tasks").joinpath("families")
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(".yaml")), key=lambda path: path.name)
    found = [_parse(path.read_text(encoding="utf-8"), f"genrec's {path.name}") for path in paths]
    return {family.name: family for family in found}


_KEYS = ("family", "about", "source", "samples", "slots", "templates")
_TEMPLATE_KEYS = ("id", "prompt", "completion", "held_out")


def _parse(text: str, file: str) -> Family:
    """Returns the family in a YAML text, which messages call ``file``."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{file} must be a mapping with the keys {', '.join(_KEYS)}.")
    _check_keys(tree, _KEYS, _KEYS, file)
    for key in ("family", "about", "source", "samples"):
        if not isinstance(tree[key], str) or not tree[key].strip():
            raise RecipeError(f"{file}: {key!r} must be a text, got {tree[key]!r}.")
    if tree["samples"] not in SAMPLERS:
        raise RecipeError(
            f"{file}: there is no sampler {tree['samples']!r}. Available: {', '.join(sorted(SAMPLERS))}."
            f"{nearest(tree['samples'], SAMPLERS)}"
        )
    slots = _slots(tree["slots"], tree["samples"], file)
    if not isinstance(tree["templates"], list) or not tree["templates"]:
        raise RecipeError(f"{file}: 'templates' must be a list of at least one template.")
    templates = [
        _template(entry, place, slots, file) for place, entry in enumerate(tree["templates"], start=1)
    ]
    seen: set[str] = set()
    for template in templates:
        if template.id in seen:
            raise RecipeError(f"{file}: two templates have the id {template.id!r}. Give one another.")
        seen.add(template.id)
    return Family(
        tree["family"],
        tree["about"].strip(),
        tree["source"].strip(),
        tree["samples"],
        slots,
        tuple(templates),
        file,
    )


def _slots(declared: Any, sampler: str, file: str) -> dict[str, str]:
    offered = {name: slot.type for name, slot in SAMPLERS[sampler].slots.items()}
    if not isinstance(declared, dict) or not declared:
        raise RecipeError(f"{file}: 'slots' must map names of slots to types, such as {{history: items}}.")
    for name, kind in declared.items():
        if name not in offered:
            raise RecipeError(
                f"{file}: the sampler {sampler!r} offers no slot {name!r}. Available: "
                f"{', '.join(offered)}.{nearest(str(name), offered)}"
            )
        if kind != offered[name]:
            raise RecipeError(
                f"{file}: the slot {name!r} of {sampler!r} is of type {offered[name]!r}, not {kind!r}."
            )
    return dict(declared)


def _template(entry: Any, place: int, slots: Mapping[str, str], file: str) -> Template:
    where = f"{file}, template {place}"
    if not isinstance(entry, dict):
        raise RecipeError(f"{where} must be a mapping with the keys {', '.join(_TEMPLATE_KEYS)}.")
    _check_keys(entry, _TEMPLATE_KEYS, _TEMPLATE_KEYS[:3], where)
    for key in _TEMPLATE_KEYS[:3]:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise RecipeError(f"{where}: {key!r} must be a text, got {entry[key]!r}.")
    where = f"{file}, template {entry['id']!r}"
    if not isinstance(entry.get("held_out", False), bool):
        raise RecipeError(f"{where}: 'held_out' is true or false, got {entry['held_out']!r}.")
    needs: dict[tuple[str, str], None] = {}
    trees = []
    for key in ("prompt", "completion"):
        try:
            trees.append(_environment().parse(entry[key]))
            _environment().from_string(entry[key])
        except jinja2.TemplateError as error:
            raise RecipeError(f"{where}: the {key} is not valid Jinja: {error}") from error
        needs |= dict.fromkeys(_needs(trees[-1], slots, f"{where}, {key}"))
    order = list(slots)
    return Template(
        entry["id"],
        entry["prompt"],
        entry["completion"],
        entry.get("held_out", False),
        tuple(sorted(needs, key=lambda need: (order.index(need[0]), need[1]))),
        _begins_with_code(trees[1], slots),
    )


def _check_keys(tree: dict, allowed: Sequence[str], needed: Sequence[str], where: str) -> None:
    for key in tree:
        if key not in allowed:
            raise RecipeError(
                f"{where}: unknown key {key!r}. Allowed: {', '.join(allowed)}.{nearest(str(key), allowed)}"
            )
    if missing := [key for key in needed if key not in tree]:
        raise RecipeError(f"{where}: the key {missing[0]!r} is missing.")


def _needs(tree: nodes.Template, slots: Mapping[str, str], where: str) -> list[tuple[str, str]]:
    """Returns ``(slot, field)`` of all that a template prints, and refuses what it cannot."""
    for name in sorted(meta.find_undeclared_variables(tree)):
        if name not in slots:
            raise RecipeError(
                f"{where}: {name!r} is not among the family's slots {', '.join(slots)}.{nearest(name, slots)}"
            )
    found, settled = [], set()
    kinds: tuple[type[Any], ...] = (nodes.Getattr, nodes.Getitem, nodes.Filter)
    for node in cast(Iterator[Any], tree.find_all(kinds)):
        inner = node.node
        if not isinstance(inner, nodes.Name) or inner.name not in slots:
            continue
        slot, kind = inner.name, slots[inner.name]
        if isinstance(node, nodes.Filter):
            if (node.name in LIST_FILTERS) != (kind == "items"):
                raise RecipeError(
                    f"{where}: {{{{ {slot} | {node.name} }}}} is not possible; "
                    + (
                        f"a list of items is printed by {', '.join(LIST_FILTERS)}, or without a filter."
                        if kind == "items"
                        else f"{node.name} prints lists of items, and {slot!r} is of type {kind!r}."
                    )
                )
            if kind != "items":
                continue
            found.append((slot, LIST_FILTERS[node.name][0]))
        elif isinstance(node, nodes.Getitem):
            raise RecipeError(
                f"{where}: print a field of {slot!r} as {{{{ {slot}.title }}}}, without brackets."
            )
        else:
            if node.attr not in TYPES[kind]:
                raise RecipeError(
                    f"{where}: {slot!r} is of type {kind!r}, which has no field {node.attr!r}. Available: "
                    f"{', '.join(TYPES[kind]) or 'none'}.{nearest(node.attr, TYPES[kind])}"
                )
            found.append((slot, node.attr))
        settled.add(id(inner))
    for node in tree.find_all(nodes.Name):
        if node.name in slots and id(node) not in settled:
            found.append((node.name, "code" if slots[node.name] in ("item", "items") else ""))
    return found


def _begins_with_code(tree: nodes.Template, slots: Mapping[str, str]) -> bool:
    """Returns whether the first thing that a template prints is an identifier."""
    first: Any = next(iter(tree.find_all(nodes.Output)), None)
    first = first.nodes[0] if first is not None else None
    kind = ""
    while isinstance(first, nodes.Filter | nodes.Getattr):
        kind = first.name if isinstance(first, nodes.Filter) else first.attr
        first = first.node
    if not isinstance(first, nodes.Name) or slots.get(first.name) not in ("item", "items"):
        return False
    return kind in ("", "code") or LIST_FILTERS.get(kind, ("",))[0] == "code"
