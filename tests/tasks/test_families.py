"""The family files: as many templates as the papers have, each sound by itself and unlike the others."""

import re
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import combinations

import pytest
import yaml
from jinja2 import StrictUndefined, meta
from jinja2.sandbox import SandboxedEnvironment

FAMILIES = {
    path.name.removesuffix(".yaml"): yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in files("genrec.tasks").joinpath("families").iterdir()
    if path.name.endswith(".yaml")
}

# family: templates to train with, templates held out
COUNTS = {
    "bigrec": (2, 1),
    "click": (4, 1),
    "item_to_text": (2, 0),
    "lcrec_asymmetric": (12, 1),
    "lcrec_item_to_text": (17, 1),
    "lcrec_next_item": (17, 1),
    "lcrec_preference": (11, 1),
    "lcrec_search": (11, 1),
    "lcrec_text_to_item": (19, 1),
    "mender": (4, 1),
    "next_item": (3, 0),
    "p5_direct": (7, 1),
    "p5_explanation": (11, 1),
    "p5_rating": (9, 1),
    "p5_review": (3, 1),
    "p5_sequential": (12, 1),
    "p5_zero_shot_explanation": (0, 3),
    "p5_zero_shot_rating": (0, 4),
    "text_to_item": (2, 0),
}

OFFERED = {
    "next_item": "user:user history:items target:item candidates:items shown:item answer:answer",
    "rating": "user:user item:item score:score stars:score shown_score:score answer:answer liked:answer "
    "choices:choices",
    "review": "user:user item:item review:text headline:text stars:score",
    "explanation": "user:user item:item explanation:text feature:text headline:text stars:score",
    "direct": "user:user target:item candidates:items shown:item answer:answer",
    "item_text": "item:item",
    "intention": "user:user history:items target:item query:text wish:text preference:text",
    "preference": "user:user history:items preference:text",
    "preferred_next": "user:user history:items target:item preference:text",
    "click": "user:user history:items item:item answer:answer",
}

OF_LIST = {"arrows", "bare", "numbered", "quoted", "rated", "titles"}

each = pytest.mark.parametrize("name", FAMILIES)


def environment() -> SandboxedEnvironment:
    made = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    made.filters |= dict.fromkeys(OF_LIST, str)
    return made


def variables(template: dict) -> set[str]:
    parse = environment().parse
    return set.union(*(meta.find_undeclared_variables(parse(template[k])) for k in ("prompt", "completion")))


def words(prompt: str) -> str:
    return " ".join(re.sub(r"{{.*?}}", " ", prompt).lower().split())


def test_families_have_as_many_templates_as_their_papers():
    counted = {}
    for name, family in FAMILIES.items():
        held_out = sum(bool(template.get("held_out")) for template in family["templates"])
        counted[name] = (len(family["templates"]) - held_out, held_out)
    assert counted == COUNTS


@each
def test_a_family_says_what_it_is(name):
    family = FAMILIES[name]
    assert set(family) == {"family", "about", "source", "samples", "slots", "templates"}
    assert family["family"] == name
    assert family["about"].endswith(".")


def test_ids_are_unique_and_begin_with_their_family():
    ids = [template["id"] for family in FAMILIES.values() for template in family["templates"]]
    assert len(ids) == len(set(ids))
    for name, family in FAMILIES.items():
        assert all(re.fullmatch(rf"{name}-(zero_shot-)?\d+", t["id"]) for t in family["templates"])


@each
def test_slots_are_those_the_sampler_offers_and_all_are_used(name):
    family = FAMILIES[name]
    offered = dict(slot.split(":") for slot in OFFERED[family["samples"]].split())
    assert family["slots"].items() <= offered.items()
    assert set.union(*map(variables, family["templates"])) == set(family["slots"])


@each
def test_prompts_end_in_a_cue_and_completions_only_answer(name):
    for template in FAMILIES[name]["templates"]:
        assert set(template) <= {"id", "held_out", "prompt", "completion"}
        assert template["prompt"] == template["prompt"].strip()
        assert template["completion"] == template["completion"].strip()
        assert not words(template["completion"]).strip('", ')


@each
def test_no_answer_stands_in_its_own_prompt(name):
    for template in FAMILIES[name]["templates"]:
        shown = set(re.findall(r"{{ (\w+(?:\.\w+)?)", template["prompt"]))
        asked = set(re.findall(r"{{ (\w+(?:\.\w+)?)", template["completion"]))
        assert not shown & asked, template["id"]


@each
def test_no_template_is_another_with_a_word_swapped(name):
    for one, two in combinations(FAMILIES[name]["templates"], 2):
        alike = SequenceMatcher(None, words(one["prompt"]), words(two["prompt"]), autojunk=False).ratio()
        assert alike < 0.75, (one["id"], two["id"])
