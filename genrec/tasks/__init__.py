"""Instruction data: (split, catalogue, index) -> prompt/completion rows, one renderer for all uses."""

from genrec.tasks.build import (
    TaskRows,
    asks_for_identifiers,
    build_dataset,
    click_family,
    held_out_rows,
    known_before,
    make_asker,
    make_renderer,
    read_rows,
    stream_dataset,
    title_template,
)
from genrec.tasks.families import Family, Template, load_families
from genrec.tasks.render import Renderer, TitlePrompts, tokenise
from genrec.tasks.samplers import SAMPLERS
from genrec.tasks.settings import TaskSettings

__all__ = [
    "SAMPLERS",
    "Family",
    "Renderer",
    "TaskRows",
    "TaskSettings",
    "Template",
    "TitlePrompts",
    "asks_for_identifiers",
    "build_dataset",
    "click_family",
    "held_out_rows",
    "known_before",
    "load_families",
    "make_asker",
    "make_renderer",
    "read_rows",
    "stream_dataset",
    "title_template",
    "tokenise",
]
