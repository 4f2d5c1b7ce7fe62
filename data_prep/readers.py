"""The public sets in their own raw files, and how they are told by the names and first lines of those files.

Facts on the formats are from the pages of the sets and from public loaders; each reader says which.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genrec.core.errors import DataError
from genrec.core.packages import PackagedFiles, fetch
from genrec.data_prep.engine import Source, open_text
from genrec.data_prep.sources import Reading, table_file

if TYPE_CHECKING:
    import ibis

GROUPLENS = (
    "research use, no commercial use without GroupLens' permission, no redistribution (the README in the folder; "
    "https://grouplens.org/datasets/movielens)"
)
MCAULEY = "research use, cite the authors (https://cseweb.ucsd.edu/~jmcauley/datasets.html)"
YELP = "academic use under Yelp's terms, no redistribution (https://www.yelp.com/dataset)"
# How many lines of a file are looked at, and how much of each, to tell what it is.
LINES, LENGTH = 5, 1_000_000


@dataclass(frozen=True)
class Format:
    """A raw format of a public set.

    Attributes:
        about: What it is, in one line.
        files: Names of its files, for people.
        log: ``{pattern of the log's file name without .gz, in small letters: regular expression}``, which one of its first
            lines must hold.
        items: Names that the catalogue's file may have, in small letters, beside a log of this name without ``.gz``.
        read: Files of the log and the catalogue, which may be none, to how they are read.
    """

    about: str
    files: str
    log: Mapping[str, str]
    items: Callable[[str], list[str]]
    read: Callable[[Path, Path | None], Reading]

    def fits(self, file: Path) -> bool:
        """Returns whether a file is a log of this format."""
        name = file.name.lower().removesuffix(".gz")
        holds = [regex for pattern, regex in self.log.items() if fnmatch.fnmatch(name, pattern)]
        if not holds or not file.is_file():
            return False
        lines = _first_lines(file)
        return any(re.search(regex, line) for regex in holds for line in lines)

    def open(self, path: Path, items: Path | None = None) -> Reading:
        """Returns how a log file, or the only one in a folder, is read.

        Args:
            path: The file, whatever its name, or the folder.
            items: The catalogue's file; None looks for it beside the log.

        Raises:
            DataError: If the folder has no log of this format or several, or the catalogue does not exist.
        """
        if path.is_dir():
            found = [file for file in sorted(path.iterdir()) if self.fits(file)]
            if len(found) != 1:
                names = ", ".join(file.name for file in found) or "none"
                raise DataError(
                    f"{path} must have one log ({self.files}), and it has {names}. Give the file itself."
                )
            path = found[0]
        if items is not None and not items.is_file():
            raise DataError(f"data.items={items} does not exist.")
        return self.read(path, items or self._beside(path))

    def _beside(self, log: Path) -> Path | None:
        return _beside(log, *self.items(log.name.lower().removesuffix(".gz")))


def _beside(log: Path, *names: str) -> Path | None:
    """Returns the first of these files, gzipped or not, that lies beside a log; names are in small letters."""
    there = {file.name.lower(): file for file in sorted(log.parent.iterdir())}
    return next((there[name + end] for name in names for end in ("", ".gz") if name + end in there), None)


def _first_lines(file: Path) -> list[str]:
    try:
        with open_text(file) as text:
            return [text.readline(LENGTH) for _ in range(LINES)]
    except (OSError, EOFError):  # no gzip, or a cut one: the engine says so where it is asked for
        return []


def movielens_100k() -> Reading:
    """Returns how MovieLens-100K is read from a package: 100,000 ratings of 943 users on 1,682 films, and who the users are.

    The rows come from the wheel of RecBole 1.2.1, which equal GroupLens' ``u.data`` (source: Harper and
    Konstan, TiiS 2015). Films are written ``Title (year)``. A catalogue entry without year keeps its title.
    """
    files = PackagedFiles(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        tuple(f"recbole/dataset_example/ml-100k/ml-100k.{table}" for table in ("inter", "item", "user")),
        "research use, no commercial use without GroupLens' permission, no redistribution "
        "(https://files.grouplens.org/datasets/movielens/ml-100k-README.txt)",
    )
    log, items, users = fetch(files)

    def shape(items: ibis.Table) -> ibis.Table:
        year = items.release_year.re_search(r"^\d{4}$").fill_null(False)
        title = items.movie_title.strip()
        return items.select(
            "_file",
            "_row",
            item_id=items.item_id,
            title=year.ifelse(title + " (" + items.release_year + ")", title),
            categories=items["class"].strip().split(" "),
        )

    return Reading(
        "movielens-100k",
        table_file(log),
        table_file(items),
        table_file(users),
        time="s",
        shape_items=shape,
        terms=files.terms,
        version=files.package,
    )


# fmt: off
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# What the numbers of MovieLens 1M's users.dat stand for, after its README.
AGES = {
    "1": "under 18", "18": "18 to 24", "25": "25 to 34", "35": "35 to 44", "45": "45 to 49", "50": "50 to 55", "56": "56 or older",
}
OCCUPATIONS = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service",
    "doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired",
    "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)
# fmt: on
RATING = ("user_id", "item_id", "rating", "timestamp")


def _movielens_100k(log: Path, items: Path | None) -> Reading:
    """MovieLens-100K as GroupLens packs it: ``u.data`` without header, ``u.item`` in Latin-1 with a flag for each genre.

    ``u.user`` has age, gender, occupation and zip code. Source: its README; titles stay as they are, the genre ``unknown`` is none.
    """
    users = _beside(log, "u.user")
    profile = ("user_id", "age", "gender", "occupation", "zip_code")
    columns = ("item_id", "title", "release_date", "video_release_date", "url", *GENRES)

    def shape(items: ibis.Table) -> ibis.Table:
        import ibis

        named = [ibis.cases((items[genre].strip() == "1", genre)) for genre in GENRES[1:]]
        categories = ibis.array(named).filter(lambda genre: genre.notnull())
        return items.select("_file", "_row", "item_id", "title", categories=categories)

    return Reading(
        "movielens-100k",
        Source((log,), "csv", "\t", "", RATING),
        Source((items,), "csv", "|", "", columns, "latin-1") if items else None,
        Source((users,), "csv", "|", "", profile) if users else None,
        time="s",
        shape_items=shape,
        terms=GROUPLENS,
    )


def _movielens_1m(log: Path, items: Path | None) -> Reading:
    """MovieLens 1M and 10M: ``ratings.dat`` and ``movies.dat`` with ``::`` between values and no header.

    1M has ``users.dat`` too, in which ages and occupations are numbers. Source: their READMEs. 1M's titles are in Latin-1, 10M's in UTF-8, which is looked for in the file itself.
    """
    encoding: Any = "utf-8"
    if items is not None:
        try:
            items.read_text("utf-8")
        except UnicodeDecodeError:
            encoding = "latin-1"
    users = _beside(log, "users.dat")
    profile = ("user_id", "gender", "age", "occupation", "zip_code")

    def shape_users(users: ibis.Table) -> ibis.Table:
        import ibis

        jobs = {str(number): name for number, name in enumerate(OCCUPATIONS)}
        named = {
            name: ibis.cases(
                *((users[name].strip() == code, word) for code, word in words.items()), else_=users[name]
            )
            for name, words in (("age", AGES), ("occupation", jobs))
        }
        return users.mutate(**named)

    return Reading(
        "movielens-1m",
        Source((log,), "csv", "::", "", RATING),
        Source((items,), "csv", "::", "", ("item_id", "title", "genres"), encoding) if items else None,
        Source((users,), "csv", "::", "", profile) if users else None,
        time="s",
        shape_items=_genres,
        shape_users=shape_users,
        terms=GROUPLENS,
    )


def _movielens_csv(log: Path, items: Path | None) -> Reading:
    """MovieLens 20M, 25M, 32M and latest: ``ratings.csv`` and ``movies.csv``, quoted where a title has a comma.

    Source: their READMEs.
    """
    return Reading(
        "movielens-csv",
        Source((log,), "csv"),
        Source((items,), "csv") if items else None,
        columns={"user_id": "userId", "item_id": "movieId"},
        item_columns={"item_id": "movieId"},
        time="s",
        shape_items=_genres,
        terms=GROUPLENS,
    )


def _genres(items: ibis.Table) -> ibis.Table:
    # Spark takes what it splits at for a regular expression, DuckDB does not.
    listed = items.genres.replace("|", "\t").split("\t").filter(lambda genre: genre != "(no genres listed)")
    return items.mutate(categories=listed).drop("genres")


# ---- Amazon

REVIEWS = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "rating": "overall",
    "timestamp": "unixReviewTime",
    "review": "reviewText",
    "summary": "summary",
    "user_name": "reviewerName",
}
# A user and an item as Amazon writes them, in the two orders of its files of ratings alone.
USER, ITEM, STARS = r"A[A-Z0-9]{9,}", r"[B0-9][A-Z0-9]{9}", r"[1-5](\.0)?,\d{9,10}\s*$"


def _category(log: str) -> str:
    """Returns what stands between the ends of an Amazon file's name, such as ``beauty`` of ``reviews_beauty_5.json``."""
    name = re.sub(r"\.(jsonl?|csv)$", "", log)
    return re.sub(r"^(reviews|ratings)_", "", re.sub(r"(_\d+|\.(train|valid|test))$", "", name))


def _meta(log: str) -> list[str]:
    return [f"meta_{_category(log)}.{ending}" for ending in ("json", "jsonl")]


def _json_source(file: Path, *keys: str, lists: tuple[str, ...] = ()) -> Source:
    """Returns how lines of JSON, or of Python's dictionaries, are read."""
    literal = any(re.match(r"\s*\{u?'", line) for line in _first_lines(file))
    return Source((file,), "json", keys=(*keys, *lists), lists=lists, literal=literal)


def _amazon_2014(log: Path, items: Path | None) -> Reading:
    """Amazon's reviews of 1996 to July 2014 (McAuley et al., SIGIR 2015; He and McAuley, WWW 2016).

    ``reviews_X.json.gz`` and ``reviews_X_5.json.gz`` have a JSON object a line, ``meta_X.json.gz`` a Python dictionary a
    line whose ``categories`` are a list of lists, ``ratings_X.csv`` has user, item, rating and time without a header.
    Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html as public loaders quote it.
    """

    def shape(items: ibis.Table) -> ibis.Table:
        listed = items.categories
        once = listed.filter(lambda name, place: listed.index(name) == place)
        texts = {"title": items.title, "brand": items.brand, "description": _joined(items.description)}
        return items.select(
            "_file", "_row", item_id=items.asin, categories=once, price=_price(items.price), **texts
        )

    header = ("user_id", "item_id", "rating", "timestamp")
    return _amazon("amazon-2014", log, items, header, "categories", shape, "error")


def _amazon_2018(log: Path, items: Path | None) -> Reading:
    """Amazon's reviews of 1996 to October 2018 (Ni, Li and McAuley, EMNLP 2019).

    ``X.json.gz`` and ``X_5.json.gz`` (reviews) and ``meta_X.json.gz`` have a JSON object a line; items stand there
    repeatedly, and some titles are what a page's script left, which the authors tell by ``getTime`` and throw
    away: those items have no title. ``X.csv`` has item, user, rating and time without a header.
    Source: https://nijianmo.github.io/amazon as public loaders quote it.
    """

    def shape(items: ibis.Table) -> ibis.Table:
        title = items.title.contains("getTime").ifelse(None, _without_scripts(items.title))
        return items.select(
            "_file",
            "_row",
            item_id=items.asin,
            title=title,
            brand=items.brand,
            categories=items.category.filter(lambda name: ~name.contains("</")),
            description=_without_scripts(_joined(items.description)),
            price=_price(items.price),
        )

    header = ("item_id", "user_id", "rating", "timestamp")
    return _amazon("amazon-2018", log, items, header, "category", shape, "first")


def _amazon(
    name: str,
    log: Path,
    items: Path | None,
    header: tuple[str, ...],
    categories: str,
    shape: Callable[[ibis.Table], ibis.Table],
    repeated: Literal["error", "first"],
) -> Reading:
    ratings = log.name.lower().removesuffix(".gz").endswith(".csv")
    source = Source((log,), "csv", header=header) if ratings else _json_source(log, *REVIEWS.values())
    keys = ("asin", "title", "brand", "price")
    return Reading(
        name,
        source,
        _json_source(items, *keys, lists=(categories, "description")) if items else None,
        columns={} if ratings else REVIEWS,
        time="s",
        shape_items=shape,
        repeated_items=repeated,
        unknown_items="untitled",
        terms=MCAULEY,
    )


def _amazon_2023(log: Path, items: Path | None) -> Reading:
    """Amazon's reviews of May 1996 to September 2023 (Hou et al., 2024); the item is ``parent_asin``, times are in ms.

    ``X.jsonl.gz`` (reviews) and ``meta_X.jsonl.gz`` have a JSON object a line, ``X.csv.gz`` has ratings with a header
    and in some editions the history, which is passed over. Some items have no metadata; where an item has no
    categories, its main one stands for them. Source: the card of McAuley-Lab/Amazon-Reviews-2023 on the Hub.
    """
    ratings = log.name.lower().removesuffix(".gz").endswith(".csv")
    columns = {"user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
    reviews = columns | {"review": "text", "summary": "title"}

    def shape_items(items: ibis.Table) -> ibis.Table:
        import ibis

        main = ibis.array([items.main_category]).filter(lambda name: name.notnull())
        return items.select(
            "_file",
            "_row",
            item_id=items.parent_asin,
            title=items.title,
            brand=items.store,
            categories=(items.categories.length() > 0).fill_null(False).ifelse(items.categories, main),
            description=_joined(items.description),
            price=_price(items.price),
        )

    keys = ("parent_asin", "title", "store", "price", "main_category")
    return Reading(
        "amazon-2023",
        Source((log,), "csv") if ratings else _json_source(log, *reviews.values()),
        _json_source(items, *keys, lists=("categories", "description")) if items else None,
        columns=columns if ratings else reviews,
        time="ms",
        shape_log=(lambda log: log.drop(*({"history"} & set(log.columns)))) if ratings else None,
        shape_items=shape_items,
        unknown_items="untitled",
        terms=MCAULEY,
    )


def _joined(texts: Any, between: str = " ") -> Any:
    return texts.join(between).nullif("")


def _price(price: Any) -> Any:
    """Returns the price as a number where it is one amount, such as ``$1,299.00``."""
    amount = price.re_extract(r"^\s*\$?\s*(\d[\d,]*(\.\d+)?)\s*$", 1)
    return amount.replace(",", "").try_cast("float64")


def _without_scripts(text: Any) -> Any:
    return text.re_replace(r"(?is)<(style|script)\b.*?</(style|script)>", " ")


# ---- Yelp and GoodReads


def _yelp(log: Path, items: Path | None) -> Reading:
    """The Yelp Open Dataset: a JSON object a line, times without a zone, a business' categories in one text with commas.

    Older editions have the categories as a list. Source: https://www.yelp.com/dataset/documentation/main as public
    loaders quote it.
    """
    columns = {
        "user_id": "user_id",
        "item_id": "business_id",
        "rating": "stars",
        "timestamp": "date",
        "review": "text",
    }

    def shape(items: ibis.Table) -> ibis.Table:
        listed = _joined(items.categories, ", ").split(", ")
        return items.select(
            "_file", "_row", "city", item_id=items.business_id, title=items.name, categories=listed
        )

    return Reading(
        "yelp",
        _json_source(log, *columns.values()),
        _json_source(items, "business_id", "name", "city", lists=("categories",)) if items else None,
        columns=columns,
        time="iso",
        shape_items=shape,
        terms=YELP,
    )


MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
DATE = r"^[A-Z][a-z]+ ([A-Z][a-z]+) (\d\d) (\d\d:\d\d:\d\d) ([+-]\d{4}) (\d{4})$"


def _goodreads(log: Path, items: Path | None) -> Reading:
    """GoodReads as the UCSD Book Graph has it (Wan and McAuley, RecSys 2018): a JSON object a line.

    An interaction is that a book was put on a shelf, at ``date_added``; a rating of 0 means that none was given. The
    texts in ``goodreads_interactions_*`` are cut, so that only ``goodreads_reviews_*`` give reviews.
    ``goodreads_interactions.csv`` has no times, and other numbers for its books than ``goodreads_books``.
    Source: https://mengtingwan.github.io/data/goodreads as public loaders quote it.
    """
    name = log.name.lower()
    timeless = name.removesuffix(".gz").endswith(".csv")
    reviews = "review_text" if "reviews" in name else None
    keys = ("user_id", "book_id", "rating", "date_added", *([reviews] if reviews else []))

    def shape_log(log: ibis.Table) -> ibis.Table:
        given = log.rating.strip().try_cast("float64")
        more = {"review": log[reviews]} if reviews else {}
        if not timeless:
            more["timestamp"] = _iso(log.date_added.strip())
        rating = (given == 0).fill_null(False).ifelse(None, log.rating)
        return log.select("_file", "_row", "user_id", item_id=log.book_id, rating=rating, **more)

    def shape_items(items: ibis.Table) -> ibis.Table:
        texts = {"title": items.title, "brand": items.publisher, "description": items.description}
        return items.select("_file", "_row", item_id=items.book_id, **texts)

    return Reading(
        "goodreads",
        Source((log,), "csv") if timeless else _json_source(log, *keys),
        None
        if timeless or not items
        else _json_source(items, "book_id", "title", "publisher", "description"),
        time="auto" if timeless else "iso",
        shape_log=shape_log,
        shape_items=shape_items,
        terms=MCAULEY,
    )


def _iso(date: Any) -> Any:
    """Returns ``Fri Aug 25 13:55:02 -0700 2017`` as ISO text; what is written in another way stays as it is."""
    import ibis

    month, day, time, zone, year = (date.re_extract(DATE, group) for group in range(1, 6))
    number = ibis.cases(*((month == name, f"{n:02}") for n, name in enumerate(MONTHS, start=1)))
    iso = year + "-" + number + "-" + day + " " + time + zone
    return ibis.coalesce(date.re_search(DATE).ifelse(iso, None), date)


def _books(log: str) -> list[str]:
    genre = re.sub(r"^goodreads_(interactions|reviews)(_dedup)?|\.json$", "", log)
    return [f"goodreads_books{genre}.json", "goodreads_books.json"]


FORMATS: dict[str, Format] = {
    "movielens-100k": Format(
        "MovieLens 100K", "u.data, u.item", {"u.data": ""}, lambda _: ["u.item"], _movielens_100k
    ),
    "movielens-1m": Format(
        "MovieLens 1M and 10M",
        "ratings.dat, movies.dat",
        {"ratings.dat": ""},
        lambda _: ["movies.dat"],
        _movielens_1m,
    ),
    "movielens-csv": Format(
        "MovieLens 20M, 25M, 32M and latest",
        "ratings.csv, movies.csv",
        {"ratings.csv": r"^\ufeff?userId,movieId,rating,timestamp"},
        lambda _: ["movies.csv"],
        _movielens_csv,
    ),
    "amazon-2014": Format(
        "Amazon reviews, 2014",
        "reviews_X.json.gz or reviews_X_5.json.gz or ratings_X.csv, meta_X.json.gz",
        {
            "*.json": r"^(?!.*['\"]verified['\"]\s*:).*['\"]reviewerID['\"]\s*:",
            "*.csv": f"^{USER},{ITEM},{STARS}",
        },
        _meta,
        _amazon_2014,
    ),
    "amazon-2018": Format(
        "Amazon reviews, 2018",
        "X.json.gz or X_5.json.gz or X.csv, meta_X.json.gz",
        {
            "*.json": r"^(?=.*\"verified\"\s*:).*\"reviewerID\"\s*:",
            "*.csv": f"^{ITEM},{USER},{STARS}",
        },
        _meta,
        _amazon_2018,
    ),
    "amazon-2023": Format(
        "Amazon reviews, 2023",
        "X.jsonl.gz or X.csv.gz, meta_X.jsonl.gz",
        {
            "*.jsonl": r"^(?=.*\"parent_asin\"\s*:).*\"user_id\"\s*:",
            "*.csv": r"^\ufeff?user_id,parent_asin,rating,timestamp",
        },
        _meta,
        _amazon_2023,
    ),
    "yelp": Format(
        "Yelp Open Dataset",
        "yelp_academic_dataset_review.json, yelp_academic_dataset_business.json",
        {"*review.json": r"^(?=.*\"business_id\"\s*:).*\"user_id\"\s*:"},
        lambda log: [log.replace("review", "business")],
        _yelp,
    ),
    "goodreads": Format(
        "GoodReads (UCSD Book Graph)",
        "goodreads_interactions_X.json.gz or goodreads_reviews_X.json.gz or goodreads_interactions.csv, "
        "goodreads_books_X.json.gz",
        {
            "goodreads_*.json": r"^(?=.*\"date_added\"\s*:).*\"book_id\"\s*:",
            "goodreads_interactions*.csv": r"^\ufeff?user_id,book_id,",
        },
        _books,
        _goodreads,
    ),
}

PUBLIC: dict[str, Callable[[], Reading]] = {"movielens-100k": movielens_100k}


def format_table() -> str:
    """Returns the raw formats as lines of name, what it is and the names of its files (X is a category or genre)."""
    rows = [(name, format.about, format.files) for name, format in FORMATS.items()]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{first}}  {about:<{second}}  {files}" for name, about, files in rows)


def recognise(path: Path, items: Path | None = None) -> Reading | None:
    """Returns how a folder or file of a public set is read, told by names and first lines of its files.

    Args:
        path: A folder, or the log's file.
        items: The catalogue's file; None looks for it beside the log.

    Returns:
        None for a file that is of none of the formats.

    Raises:
        DataError: If a folder has logs of no format, of several, or several of one.
    """
    files = [path] if path.is_file() else sorted(path.iterdir())
    fits = [name for name, format in FORMATS.items() if any(format.fits(file) for file in files)]
    if len(fits) == 1:
        return FORMATS[fits[0]].open(path, items)
    if path.is_file():
        return None
    known = "; ".join(f"{name}: {format.files}" for name, format in FORMATS.items())
    raise DataError(
        f"{path} has no interactions.parquet (or .csv, .tsv, .jsonl), and its files tell "
        + (
            f"several raw formats, {', '.join(fits)}: give the log's file itself, or choose one with data.format."
            if fits
            else f"no raw format ({known})."
        )
    )
