"""What a recipe says of its data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from genrec.data_prep.engine import EngineSettings
from genrec.data_prep.split import SplitSettings


class DataSettings(BaseModel):
    """Which log and catalogue are used, what of them, and what is held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(
        "movielens-100k",
        description="Where the log is: a public set by name (movielens-100k); a log file (.csv, .tsv, .jsonl, each also "
        "with .gz, or .parquet); a folder with interactions.* and items.*, with a public set in its own raw files, or "
        "that genrec prepare wrote; hub:NAME for a Hub data set; or the address of a database (sqlite:///FILE, "
        "duckdb:///FILE, postgres://...).",
    )
    format: str = Field(
        "auto",
        description="Raw format of a public set (genrec prepare --formats lists them); auto recognises it by its file names.",
    )
    items: str | None = Field(
        None, description="Catalogue beside a log: a file, hub:NAME, or a query of the same database."
    )
    users: str | None = Field(
        None,
        description="What is known of users: a file, hub:NAME, or a query of the same database, with a row a user. Without it that of "
        "the source, where it has one (users.* of a folder, MovieLens-100K and 1M); none leaves that out.",
    )
    query: str | None = Field(
        None, description="What a database is asked for the log: SQL, or the name of a table."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the log's columns where they are not user_id, item_id, timestamp, rating, review, summary.",
    )
    item_columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the catalogue's columns where they are not item_id, title, brand, categories, description.",
    )
    user_columns: dict[str, str] = Field(
        default_factory=dict,
        description="Name of the users' column of ids where it is not user_id, and new names for others.",
    )
    encoding: Literal["utf-8", "latin-1"] = Field("utf-8", description="Encoding of text files.")
    time: Literal["auto", "s", "ms", "us", "iso", "number", "row"] = Field(
        "auto",
        description="What timestamps are: s, ms or us since 1970; iso text; number, of which only the order counts; row "
        "where there are none and rows are in time order. auto recognises the first four and says so.",
    )
    min_rating: float | None = Field(None, description="Least rating of an interaction that is kept.")
    since: str | float | None = Field(
        None, description="First moment that is kept: ISO text or a timestamp in s."
    )
    until: str | float | None = Field(None, description="First moment that is kept no more.")
    repeats: Literal["all", "first", "last"] = Field(
        "all", description="Which interactions of one user with one item are kept."
    )
    user_core: int = Field(5, ge=1, description="Fewest interactions of a user that is kept.")
    item_core: int = Field(
        5, ge=1, description="Fewest interactions of an item that is kept; filtered in turns until both hold."
    )
    clean_text: bool = Field(
        True,
        description="Take tags, entities of HTML, control characters and runs of white space out of texts.",
    )
    on_bad_rows: Literal["error", "quarantine"] = Field(
        "error", description="error stops at bad rows; quarantine writes them to quarantine.jsonl, counted."
    )
    split: SplitSettings = Field(default_factory=SplitSettings, description="What is held out.")
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="What data preparation runs on."
    )
