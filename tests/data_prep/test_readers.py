"""The public sets in their raw formats: what is recognised, what is read, what is told of a bad line."""

import gzip
import json
import shutil

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import load_dataset
from genrec.data_prep.engine import EngineSettings, Source, open_engine, parse_literal
from genrec.data_prep.prepare import prepare
from genrec.data_prep.readers import FORMATS, GENRES, format_table
from genrec.data_prep.settings import DataSettings
from genrec.data_prep.sources import find_reading

from planted import DATA


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def objects(*rows):
    return lines(*(json.dumps(row) for row in rows))


def flags(*genres):
    return "|".join(str(int(genre in genres)) for genre in GENRES)


STYLE = '<style type="text/css">.a-box{color:#fff}</style>'

LOOSE = {
    "reviewerID": "A2SUAM1J3GNN3B",
    "asin": "0000013714",
    "reviewerName": "J. McDonald",
    "helpful": [2, 3],
    "reviewText": "Plays well.\nAgain and again.",
    "overall": 5.0,
    "summary": "Hymns",
    "unixReviewTime": 1252800000,
    "reviewTime": "09 13, 2009",
}
REVIEW_2018 = {
    "overall": 4.0,
    "vote": "2",
    "verified": True,
    "reviewTime": "01 1, 2018",
    "reviewerID": "AUI6WTTT0QZYS",
    "asin": "5120053084",
    "style": {"Size:": "Large"},
    "reviewerName": "Abbey",
    "reviewText": "I have 4 of 5 colours.",
    "summary": "Comfy",
    "unixReviewTime": 1514764800,
    "image": ["https://example.org/a.jpg"],
}
META_2018 = {
    "category": ["Clothing", "Women", "</span></span></span>"],
    "description": ["Soft", STYLE + "and <b>warm</b>"],
    "title": STYLE + "<b>Shirt</b> &amp; Tie",
    "brand": "Lux",
    "also_buy": ["5120053085"],
    "price": "$1,299.00",
    "asin": "5120053084",
}
REVIEW_2023 = {
    "rating": 3.0,
    "title": "Fine",
    "text": "It does.",
    "images": [],
    "asin": "B00YQ6X8EO",
    "parent_asin": "B00YQ6X8EP",
    "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
    "timestamp": 1588687728923,
    "helpful_vote": 0,
    "verified_purchase": True,
}
META_2023 = {
    "main_category": "All Beauty",
    "title": "Spray",
    "average_rating": 4.8,
    "rating_number": 10,
    "features": ["Light"],
    "description": ["One.", "Two."],
    "price": 12.5,
    "images": [],
    "videos": [],
    "store": "Howard",
    "categories": ["Hair", "Care"],
    "details": {"Color": "Red"},
    "parent_asin": "B00YQ6X8EP",
    "bought_together": None,
}
YELP = {
    "review_id": "KU_O5udG6zpxOg-VcAEodg",
    "user_id": "mh_-eMZ6K5RLWhZyISBhwA",
    "business_id": "XQfwVwDr-v0ZS3_CbbE5Xw",
    "stars": 3.0,
    "useful": 0,
    "funny": 0,
    "cool": 0,
    "text": "If you decide to eat here,\nbe aware.",
    "date": "2018-07-07 22:09:11",
}
SHELVED = {
    "user_id": "8842281e1d1347389f2ab93d60773d4d",
    "book_id": "24375664",
    "review_id": "5cd416f3efc3f944fce4ce2db2290d5e",
    "is_read": True,
    "rating": 5,
    "review_text_incomplete": "Mind blow...",
    "date_added": "Fri Aug 25 13:55:02 -0700 2017",
    "date_updated": "Mon Oct 09 08:55:59 -0700 2017",
    "read_at": "Sat Oct 07 00:00:00 -0700 2017",
    "started_at": "",
}
BOOK = {
    "isbn": "",
    "popular_shelves": [{"count": "58", "name": "to-read"}],
    "description": "Of pirates.",
    "authors": [{"author_id": "604031", "role": ""}],
    "publisher": "St. Martin's Press",
    "book_id": "24375664",
    "title": "W.C. Fields (Lives, #1)",
    "title_without_series": "W.C. Fields",
}

# Each set as its files are: {file: text}, the log first; the log's rows and the catalogue's, as they must be read.
SETS = {
    "movielens-100k": (
        {
            "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
            "u.item": lines(
                f"242|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M?a=1|{flags('Drama', 'Musical')}",
                f'302|"Quiet" unknown||||{flags("unknown")}',
            ).encode("latin-1"),
        },
        {
            "user_id": ["196", "186"],
            "item_id": ["242", "302"],
            "rating": [3, 3],
            "timestamp": [881250949, 891717742],
        },
        {
            "item_id": ["242", "302"],
            "title": ["Misérables, Les (1995)", '"Quiet" unknown'],
            "categories": [["Drama", "Musical"], []],
        },
    ),
    "movielens-1m": (
        {
            "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
            "movies.dat": "1193::Misérables: Les (1975)::Drama\n661::James (1996)::Animation|Children's\n".encode(
                "latin-1"
            ),
            "users.dat": "1::F::1::10::48067\n",
        },
        {
            "user_id": ["1", "1"],
            "item_id": ["1193", "661"],
            "rating": [5, 3],
            "timestamp": [978300760, 978302109],
        },
        {
            "title": ["Misérables: Les (1975)", "James (1996)"],
            "categories": [["Drama"], ["Animation", "Children's"]],
        },
    ),
    "movielens-1m as 10m": (
        {
            "ratings.dat": "1::122::4.5::838985046\n",
            "movies.dat": "122::Misérables (1992)::(no genres listed)\n",
        },
        {"user_id": ["1"], "item_id": ["122"], "rating": [4.5]},
        {"title": ["Misérables (1992)"], "categories": [[]]},
    ),
    "movielens-csv": (
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,11,4.5,1260759144\n1,12,0.5,1260759179\n",
            "movies.csv": 'movieId,title,genres\n11,"American ""P"", The (1995)",Comedy|Drama\n12,É (2007),(no genres listed)\n',
            "tags.csv": "userId,movieId,tag,timestamp\n1,11,good,1260759144\n",
        },
        {
            "user_id": ["1", "1"],
            "item_id": ["11", "12"],
            "rating": [4.5, 0.5],
            "timestamp": [1260759144, 1260759179],
        },
        {
            "item_id": ["11", "12"],
            "title": ['American "P", The (1995)', "É (2007)"],
            "categories": [["Comedy", "Drama"], []],
        },
    ),
    "amazon-2014": (
        {
            "reviews_Digital_Music_5.json.gz": objects(LOOSE, LOOSE | {"reviewerID": "A1", "summary": None}),
            "meta_Digital_Music.json.gz": lines(
                {
                    "asin": "0000013714",
                    "title": 'Girl\'s "Ballet" Tutu',
                    "price": 3.17,
                    "imUrl": "http://example.org/1.jpg",
                    "related": {"also_bought": ["B00JHONN1S"]},
                    "brand": "Coxlures",
                    "description": "Each \\d one",
                    "categories": [["Music", "Sheet"], ["Music", "Cheap, old"]],
                },
                {"asin": "B000000001", "categories": [["Music"]]},
            ),
            "meta_Beauty.json.gz": lines({"asin": "B000000002", "categories": [["Beauty"]]}),
        },
        {
            "user_id": ["A2SUAM1J3GNN3B", "A1"],
            "item_id": ["0000013714"] * 2,
            "rating": [5, 5],
            "timestamp": [1252800000] * 2,
            "review": ["Plays well.\nAgain and again."] * 2,
            "summary": ["Hymns", None],
            "user_name": ["J. McDonald"] * 2,
        },
        {
            "item_id": ["0000013714", "B000000001"],
            "title": ['Girl\'s "Ballet" Tutu', "Item B000000001"],
            "brand": ["Coxlures", None],
            "price": [3.17, None],
            "description": ["Each \\d one", None],
            "categories": [["Music", "Sheet", "Cheap, old"], ["Music"]],
        },
    ),
    "amazon-2014 without reviews": (
        {"ratings_Beauty.csv": "A39HTATAQ9V7YF,0205616461,5.0,1369699200\n"},
        {"user_id": ["A39HTATAQ9V7YF"], "item_id": ["0205616461"], "rating": [5], "timestamp": [1369699200]},
        None,
    ),
    "amazon-2018": (
        {
            "AMAZON_FASHION.json.gz": objects(REVIEW_2018),
            "meta_AMAZON_FASHION.json.gz": objects(
                META_2018,
                META_2018 | {"title": "the same again"},
                {
                    "asin": "B1",
                    "title": "var aPageStart = (new Date()).getTime();",
                    "price": "$1.00 - $2.00",
                    "description": [],
                },
            ),
        },
        {
            "user_id": ["AUI6WTTT0QZYS"],
            "item_id": ["5120053084"],
            "rating": [4],
            "timestamp": [1514764800],
            "review": ["I have 4 of 5 colours."],
            "summary": ["Comfy"],
            "user_name": ["Abbey"],
        },
        {
            "item_id": ["5120053084", "B1"],
            "title": ["<b>Shirt</b> &amp; Tie", "Item B1"],
            "brand": ["Lux", None],
            "price": [1299, None],
            "categories": [["Clothing", "Women"], None],
            "description": ["Soft  and <b>warm</b>", None],
        },
    ),
    "amazon-2018 without reviews": (
        {"All_Beauty.csv": "0143026860,A1V6B6TNIC10QE,1.0,1424304000\n"},
        {"user_id": ["A1V6B6TNIC10QE"], "item_id": ["0143026860"], "rating": [1], "timestamp": [1424304000]},
        None,
    ),
    "amazon-2023": (
        {
            "All_Beauty.jsonl.gz": objects(REVIEW_2023),
            "meta_All_Beauty.jsonl.gz": objects(
                META_2023,
                {"parent_asin": "B2", "main_category": "All Beauty", "categories": [], "price": None},
            ),
        },
        {
            "user_id": ["AGKHLEW2SOWHNMFQIJGBECAF7INQ"],
            "item_id": ["B00YQ6X8EP"],
            "rating": [3],
            "timestamp": [1588687728.923],
            "review": ["It does."],
            "summary": ["Fine"],
        },
        {
            "item_id": ["B00YQ6X8EP", "B2"],
            "title": ["Spray", "Item B2"],
            "brand": ["Howard", None],
            "price": [12.5, None],
            "categories": [["Hair", "Care"], ["All Beauty"]],
            "description": ["One. Two.", None],
        },
    ),
    "amazon-2023 without reviews": (
        {
            "Software.csv.gz": "user_id,parent_asin,rating,timestamp,history\nAG,B1,5.0,1609459200000,\nAG,B2,4.0,1609459200001,B1\n"
        },
        {"user_id": ["AG"] * 2, "item_id": ["B1", "B2"], "timestamp": [1609459200, 1609459200.001]},
        None,
    ),
    "yelp": (
        {
            "yelp_academic_dataset_review.json": objects(YELP),
            "yelp_academic_dataset_business.json": objects(
                {
                    "business_id": YELP["business_id"],
                    "name": "Turning Point",
                    "city": "North Wales",
                    "stars": 3.0,
                    "categories": "Restaurants, Breakfast & Brunch, Food",
                    "hours": None,
                },
                {"business_id": "b", "name": "Bar", "city": "Reno", "categories": None},
                {"business_id": "c", "name": "Old", "city": "Reno", "categories": ["Bars", "Food"]},
            ),
            "yelp_academic_dataset_tip.json": objects({"user_id": "u", "business_id": "b", "date": "2018"}),
        },
        {
            "user_id": ["mh_-eMZ6K5RLWhZyISBhwA"],
            "item_id": ["XQfwVwDr-v0ZS3_CbbE5Xw"],
            "rating": [3],
            "timestamp": [1531001351],
            "review": ["If you decide to eat here,\nbe aware."],
        },
        {
            "title": ["Turning Point", "Bar", "Old"],
            "city": ["North Wales", "Reno", "Reno"],
            "categories": [["Restaurants", "Breakfast & Brunch", "Food"], None, ["Bars", "Food"]],
        },
    ),
    "goodreads": (
        {
            "goodreads_interactions_poetry.json.gz": objects(
                SHELVED, SHELVED | {"rating": 0, "date_added": "Sun Jan 01 00:00:00 +0530 2006"}
            ),
            "goodreads_books_poetry.json.gz": objects(BOOK),
        },
        {
            "user_id": ["8842281e1d1347389f2ab93d60773d4d"] * 2,
            "item_id": ["24375664"] * 2,
            "rating": [None, 5],
            "timestamp": [1136053800, 1503694502],
        },
        {
            "title": ["W.C. Fields (Lives, #1)"],
            "brand": ["St. Martin's Press"],
            "description": ["Of pirates."],
        },
    ),
    "goodreads with reviews": (
        {
            "goodreads_reviews_dedup.json.gz": objects(
                {k: v for k, v in SHELVED.items() if k != "review_text_incomplete"} | {"review_text": "Read!"}
            ),
            "goodreads_books.json.gz": objects(BOOK),
        },
        {"item_id": ["24375664"], "rating": [5], "review": ["Read!"]},
        {"item_id": ["24375664"]},
    ),
}


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        content = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def columns(table, wanted):
    return {name: table[name].to_pylist() for name in wanted}


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_is_recognised_and_read(tmp_path, name):
    files, rows, entries = SETS[name]
    folder = put(tmp_path, files)
    reading = find_reading(str(folder), tmp_path / "scratch")
    assert reading.format == name.split()[0]
    log, items = load_dataset(str(folder))
    assert columns(log.table, rows) == rows
    if entries is not None:
        assert columns(items.table, entries) == entries
    # The log's file alone says the same, and finds its catalogue beside it.
    alone = find_reading(str(folder / next(iter(files))), tmp_path / "scratch")
    assert (alone.format, alone.log, alone.items) == (reading.format, reading.log, reading.items)


# What stands in lines of their own behind those of the log or the catalogue, and what is said of each.
BAD = {
    ("movielens-100k", "u.data"): {"1\t2\t5": "has fewer values than"},
    ("movielens-100k", "u.item"): {"9|Title": "has fewer values than"},
    ("movielens-1m", "ratings.dat"): {"1::2::five::978300760": "rating: 'five' is not a finite number"},
    ("movielens-csv", "ratings.csv"): {"1,,5,1260759144": "item_id: is missing"},
    ("movielens-csv", "movies.csv"): {"11,Again,Drama": "item_id: '11' already stands in row 1"},
    ("amazon-2014", "reviews_Digital_Music_5.json.gz"): {'{"reviewerID": "A': "is no valid JSON"},
    ("amazon-2014", "meta_Digital_Music.json.gz"): {
        "{'asin': 'B1', ": "is no valid dictionary of Python",
        "['B1']": "is Python, but no dictionary",
        "{'asin': '\udcff'}": "is not valid UTF-8",
        "{'title': 'Nameless'}": "item_id: is missing",
    },
    ("amazon-2018", "AMAZON_FASHION.json.gz"): {
        json.dumps(REVIEW_2018 | {"unixReviewTime": 5e11}): "outside"
    },
    ("amazon-2023", "All_Beauty.jsonl.gz"): {
        json.dumps(REVIEW_2023 | {"timestamp": "soon"}): "'soon' is not"
    },
    ("yelp", "yelp_academic_dataset_review.json"): {
        json.dumps(YELP | {"date": "7/7/2018"}): "'7/7/2018' is not an ISO time"
    },
    ("goodreads", "goodreads_interactions_poetry.json.gz"): {
        json.dumps(
            SHELVED | {"date_added": "Fri Foo 25 13:55:02 -0700 2017"}
        ): "'Fri Foo 25 13:55:02 -0700 2017' is not"
    },
}


@pytest.mark.parametrize(("name", "file"), BAD, ids=str)
def test_bad_lines_are_told_with_file_and_line(tmp_path, name, file):
    files = dict(SETS[name][0])
    before = files[file] if isinstance(files[file], bytes) else files[file].encode()
    files[file] = before + lines(*BAD[name, file]).encode(errors="surrogateescape")
    with pytest.raises(DataError) as error:
        load_dataset(str(put(tmp_path, files)))
    text = str(error.value)
    assert f"{len(BAD[name, file])} bad row" in text
    for number, said in enumerate(BAD[name, file].values(), start=before.count(b"\n") + 1):
        (told,) = [line for line in text.splitlines() if f"{file} line {number}: " in line]
        assert said in told


def test_bad_bytes_and_bad_json_in_one_file_are_both_told(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"user_id": "u", "item_id": "a", "timestamp": 1400000000}\n{"user_id": "\xff"}\n{"user_id"\n'
    )
    with pytest.raises(DataError) as error:
        load_dataset(str(tmp_path / "a.jsonl"))
    assert "a.jsonl line 2: is not valid UTF-8" in str(error.value)
    assert "a.jsonl line 3: is no valid JSON" in str(error.value)


def test_blank_lines_of_python_literals_keep_the_count(tmp_path):
    files = dict(SETS["amazon-2014"][0])
    files["meta_Digital_Music.json.gz"] = "\n{'asin': '0000013714'}\n\n{'asin': \n"
    with pytest.raises(DataError, match=r"meta_Digital_Music\.json\.gz line 4: is no valid dictionary"):
        load_dataset(str(put(tmp_path, files)))


PLAIN = st.text(max_size=6) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
VALUES = PLAIN | st.none() | st.lists(PLAIN, max_size=2) | st.lists(st.lists(PLAIN, max_size=2), max_size=2)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_a_dictionary_of_python_is_parsed_as_python_does(row):
    assert parse_literal(repr(row)) == row


def test_a_cut_gzip_is_a_data_error(tmp_path):
    for name in ("reviews_Digital_Music_5.json.gz", "meta_Digital_Music.json.gz"):
        folder = put(tmp_path / name, SETS["amazon-2014"][0])
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
        with pytest.raises(DataError, match=name):
            load_dataset(str(folder / "reviews_Digital_Music_5.json.gz"))


def test_editions_of_amazon_are_told_by_their_first_lines(tmp_path):
    put(tmp_path, {"Fashion_5.json.gz": objects(LOOSE), "Music_5.json.gz": objects(REVIEW_2018)})
    assert find_reading(str(tmp_path / "Fashion_5.json.gz"), tmp_path).format == "amazon-2014"
    assert find_reading(str(tmp_path / "Music_5.json.gz"), tmp_path).format == "amazon-2018"
    with pytest.raises(
        DataError, match=r"several raw formats, amazon-2014, amazon-2018: give the log's file"
    ):
        find_reading(str(tmp_path), tmp_path)
    assert find_reading(str(tmp_path), tmp_path, "amazon-2018").log.files[0].name == "Music_5.json.gz"


def test_two_logs_of_one_format_are_not_chosen_between(tmp_path):
    put(tmp_path, {"reviews_A.json.gz": objects(LOOSE), "reviews_A_5.json.gz": objects(LOOSE)})
    with pytest.raises(
        DataError, match=r"has reviews_A\.json\.gz, reviews_A_5\.json\.gz\. Give the file itself"
    ):
        find_reading(str(tmp_path), tmp_path)
    with pytest.raises(DataError, match=r"must have one log \(u\.data, u\.item\), and it has none"):
        find_reading(str(tmp_path), tmp_path, "movielens-100k")


def test_what_is_no_public_set_is_a_plain_table_or_refused(tmp_path):
    put(tmp_path, {"ratings.csv": "user_id,item_id,timestamp\nu,a,1400000000\n"})
    assert find_reading(str(tmp_path / "ratings.csv"), tmp_path).format == "table"
    with pytest.raises(
        DataError, match=r"no raw format \(movielens-100k: u\.data, u\.item; .*goodreads_books"
    ):
        find_reading(str(tmp_path), tmp_path)
    folder = put(tmp_path / "ml", SETS["movielens-csv"][0])
    reading = find_reading(str(folder / "ratings.csv"), tmp_path, "table", items=str(folder / "movies.csv"))
    assert (reading.format, reading.items.files) == ("table", (folder / "movies.csv",))


def test_a_format_may_be_named_and_its_catalogue_given(tmp_path):
    put(tmp_path / "logs", {"mine.dat": SETS["movielens-1m"][0]["ratings.dat"]})
    put(tmp_path / "films", {"mine.dat": SETS["movielens-1m"][0]["movies.dat"]})
    log, films = str(tmp_path / "logs" / "mine.dat"), str(tmp_path / "films" / "mine.dat")
    reading = find_reading(log, tmp_path, "movielens-1m", films)
    assert [file.parent.name for file in reading.files] == ["logs", "films"]
    with pytest.raises(DataError, match="nothing does not exist"):
        find_reading(log, tmp_path, "movielens-1m", "nothing")
    with pytest.raises(DataError, match=r"Unknown data\.format 'amazon2018'.*Did you mean 'amazon-2018'"):
        find_reading(log, tmp_path, "amazon2018")


def test_goodreads_without_times_asks_for_them(tmp_path):
    put(
        tmp_path,
        {
            "goodreads_interactions.csv": "user_id,book_id,is_read,rating,is_reviewed\n0,948,1,5,0\n0,947,1,0,1\n"
        },
    )
    with pytest.raises(DataError, match=r"lacks the column timestamp.*say data\.time=row"):
        load_dataset(str(tmp_path))
    log, _ = load_dataset(str(tmp_path), time="row")
    assert columns(log.table, ["item_id", "rating"]) == {"item_id": ["948", "947"], "rating": [5, None]}


def test_items_that_a_catalogue_of_amazon_lacks_have_no_title(tmp_path):
    rows = [REVIEW_2018 | {"asin": item} for item in ("5120053084", "B1", "B2")]
    meta = objects(META_2018, META_2018)
    put(tmp_path / "raw", {"Music.json.gz": objects(*rows), "meta_Music.json.gz": meta})
    report = prepare(DataSettings(source=str(tmp_path / "raw"), user_core=1, item_core=1), tmp_path / "out")
    assert (report["num_items_without_entry"], report["num_untitled_items"]) == (2, 2)
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [item["title"] for item in items] == ["Shirt & Tie", "Item B1", "Item B2"]
    assert items[0]["categories"] == ["Clothing", "Women"]


def test_the_table_of_formats_names_each_with_its_files():
    text = format_table().splitlines()
    assert [line.split()[0] for line in text] == list(FORMATS)
    assert all(format.files in line for line, format in zip(text, FORMATS.values(), strict=True))


def by_row(table):
    return sorted(table.to_pylist(), key=repr)


# A few rows need no compiled code.
QUICK = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}


@pytest.mark.spark
@pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java 17")
def test_every_format_is_read_on_spark_as_on_duckdb(tmp_path):
    pytest.importorskip("pyspark")
    with (
        open_engine(
            EngineSettings(name="spark", memory_gb=1, threads=1, spark=QUICK), tmp_path / "spark"
        ) as spark,
        open_engine(EngineSettings(), tmp_path / "duckdb") as duckdb,
    ):
        for name, (files, *_) in SETS.items():
            reading = find_reading(str(put(tmp_path / name, files)), tmp_path)
            for source, shape in ((reading.log, reading.shape_log), (reading.items, reading.shape_items)):
                if source is None:
                    continue
                tables = []
                for engine in (spark, duckdb):
                    scan = engine.scan(source)
                    table = shape(scan.table) if shape else scan.table
                    tables.append(by_row(engine.fetch(table.drop("_row"))))
                    assert not scan.rejects
                assert tables[0] == tables[1], name
        for engine in (spark, duckdb):
            with pytest.raises(DataError, match=r"gone\.csv does not exist\. Give the path"):
                engine.scan(Source((tmp_path / "gone.csv",), "csv"))


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")


@pytest.mark.data
@needs_data
def test_movielens_100k_in_its_raw_form_is_the_set_at_hand(tmp_path):
    log = pq.read_table(DATA / "ml-100k" / "interactions.parquet").to_pylist()
    films = pq.read_table(DATA / "ml-100k" / "items.parquet").to_pylist()
    data = lines(*(f"{r['user_id']}\t{r['item_id']}\t{r['rating']:.0f}\t{r['timestamp']}" for r in log))
    item = lines(
        *(f"{f['item_id']}|{f['title']}|{f['release_date'] or ''}|||{flags(*f['categories'])}" for f in films)
    )
    found, catalogue = load_dataset(str(put(tmp_path, {"u.data": data, "u.item": item.encode("latin-1")})))
    for name in ("user_id", "item_id", "timestamp", "rating"):
        assert found.table[name].to_pylist() == [r[name] for r in log]
    assert catalogue.table["title"].to_pylist() == [f["title"].strip() for f in films]
    known = [[c for c in f["categories"] if c != "unknown"] for f in films]
    assert [sorted(c) for c in catalogue.table["categories"].to_pylist()] == [sorted(c) for c in known]


@pytest.mark.data
@needs_data
def test_movielens_latest_in_its_raw_form_is_the_set_at_hand(tmp_path):
    log = pq.read_table(DATA / "ml-latest-small" / "interactions.parquet").to_pylist()
    films = pq.read_table(DATA / "ml-latest-small" / "items.parquet").to_pylist()
    ratings = "userId,movieId,rating,timestamp\n" + lines(
        *(f"{r['user_id']},{r['item_id']},{r['rating']},{r['timestamp']}" for r in log)
    )
    quoted = ((f, '"' + f["title"].replace('"', '""') + '"') for f in films)
    movies = "movieId,title,genres\n" + lines(
        *(f"{f['item_id']},{t},{'|'.join(f['categories']) or '(no genres listed)'}" for f, t in quoted)
    )
    found, catalogue = load_dataset(str(put(tmp_path, {"ratings.csv": ratings, "movies.csv": movies})))
    for name in ("user_id", "item_id", "timestamp", "rating"):
        assert found.table[name].to_pylist() == [r[name] for r in log]
    assert catalogue.table["title"].to_pylist() == [f["title"].strip() for f in films]
    assert catalogue.table["categories"].to_pylist() == [f["categories"] for f in films]
