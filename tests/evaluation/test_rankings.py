import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.evaluation import ranking_metrics
from genrec.evaluation.rankings import (
    Rankings,
    align,
    read_rankings,
    read_relevant,
    write_qrels,
    write_trec,
)

# Item ids that sort against their ranks, so that an order by name would show.
LISTS = Rankings(
    ["u2", "u1", "u10"], [["b", "c", "a"], ["9", "10"], ["z"]], [[3.5, 3.5, -1.0], [2e-9, 1e-9], [0.0]]
)


def save(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def long_rows(rankings, rank=False):
    """Pairs with their scores, or their ranks from 1."""
    given = rankings.scores or [[None] * len(items) for items in rankings.item_ids]
    return [
        (user, item, place + 1 if rank else score)
        for user, items, scores in zip(rankings.user_ids, rankings.item_ids, given, strict=True)
        for place, (item, score) in enumerate(zip(items, scores, strict=True))
    ]


def without_scores(rankings):
    return Rankings(rankings.user_ids, rankings.item_ids)


# Round trips


@pytest.mark.parametrize("rankings", [LISTS, without_scores(LISTS), Rankings(["a", "b"], [[], ["x"]])])
def test_our_own_parquet_comes_back(tmp_path, rankings):
    rankings.write(tmp_path / "r.parquet")
    assert read_rankings(tmp_path / "r.parquet") == rankings
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson"])
def test_wide_json_lines(tmp_path, ending):
    rows = [
        {"user_id": u, "item_ids": i, "scores": s, "target": "b"}
        for u, i, s in zip(LISTS.user_ids, LISTS.item_ids, LISTS.scores, strict=True)
    ]
    path = save(tmp_path / f"r.{ending}", "\n".join(map(json.dumps, rows)))
    assert read_rankings(path) == LISTS


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_long_text_tables_by_score_and_by_rank(tmp_path, ending, between):
    for name in ("score", "rank"):
        lines = [between.join(("user_id", "item_id", name))]
        lines += [between.join(map(str, row)) for row in long_rows(LISTS, rank=name == "rank")]
        found = read_rankings(save(tmp_path / f"{name}.{ending}", "\n".join(lines) + "\n"))
        assert found == (LISTS if name == "score" else without_scores(LISTS))


def test_long_json_lines_and_parquet_in_any_order(tmp_path):
    rows = long_rows(LISTS)
    users, items, scores = zip(*[rows[n] for n in (2, 3, 0, 5, 1, 4)], strict=True)
    columns = {"user_id": users, "item_id": items, "score": scores}
    pa_parquet.write_table(pa.table(columns), tmp_path / "r.parquet")
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    for path in (tmp_path / "r.parquet", save(tmp_path / "r.jsonl", "\n".join(lines))):
        assert read_rankings(path) == LISTS


def test_json_of_lists_and_of_scores(tmp_path):
    lists = dict(zip(LISTS.user_ids, LISTS.item_ids, strict=True)) | {"nothing": []}
    assert read_rankings(save(tmp_path / "a.json", json.dumps(lists))) == Rankings(
        list(lists), list(lists.values())
    )
    scores = {"u": {"x": 1, "y": 2.5, "w": 1, "v": -3}, "nothing": {}}
    assert read_rankings(save(tmp_path / "b.json", json.dumps(scores))) == Rankings(
        ["u", "nothing"], [["y", "x", "w", "v"], []], [[2.5, 1.0, 1.0, -3.0], []]
    )


def test_ids_that_are_numbers_become_text(tmp_path):
    expected = Rankings(["7", "8"], [["30", "4"], ["5"]])
    wide = pa.table({"user_id": [7, 8], "item_ids": [[30, 4], [5]]})
    long = pa.table({"user_id": [7, 7, 8], "item_id": [4, 30, 5], "rank": [2, 1, 1]})
    for name, table in (("wide", wide), ("long", long)):
        pa_parquet.write_table(table, tmp_path / f"{name}.parquet")
        assert read_rankings(tmp_path / f"{name}.parquet") == expected
    assert read_rankings(save(tmp_path / "r.json", '{"7": [30, 4], "8": [5]}')) == expected
    assert (
        read_rankings(
            save(tmp_path / "r.jsonl", '{"user_id":7,"item_ids":[30,4]}\n{"user_id":8,"item_ids":[5]}')
        )
        == expected
    )


def test_tables_of_other_writers(tmp_path):
    """Categories, lists of fixed or large size, many row groups."""
    table = pa.table(
        {
            "user_id": pa.array(["b", "a"]).dictionary_encode(),
            "item_ids": pa.array([["x", "y"], ["y", "x"]], pa.list_(pa.string(), 2)),
            "scores": pa.array([[2, 1], [1, 1]], pa.large_list(pa.int32())),
        }
    )
    pa_parquet.write_table(table, tmp_path / "r.parquet", row_group_size=1)
    assert read_rankings(tmp_path / "r.parquet") == Rankings(
        ["b", "a"], [["x", "y"], ["y", "x"]], [[2.0, 1.0], [1.0, 1.0]]
    )


# TREC


def test_a_trec_run_with_ties_by_hand(tmp_path):
    """The score decides, even against the rank; then the rank; then the file's order; never the name."""
    run = (
        "\ufeffq2  Q0\td1 1 0.5 mine\r\n"
        "q1 Q0 low 1 -2 mine\n"
        "\n"
        "q1 Q0 tied-third 7 1.0 mine\n"
        "q1 Q0 tied-first 2 1.00 mine\n"
        "q2 Q0 d0 2 0.5 mine\n"
        "   q1 Q0 tied-second 7.0 1e0 mine  \n"
        "q1 Q0 a-tied-fourth 7 +1 mine\n"
        "q1 Q0 best 9 1.5 mine"
    )
    expected = Rankings(
        ["q2", "q1"],
        [["d1", "d0"], ["best", "tied-first", "tied-third", "tied-second", "a-tied-fourth", "low"]],
        [[0.5, 0.5], [1.5, 1.0, 1.0, 1.0, 1.0, -2.0]],
    )
    for ending in ("trec", "run", "txt"):
        path = tmp_path / f"r.{ending}"
        path.write_bytes(run.encode())
        assert read_rankings(path) == expected


def test_trec_holds_scores_that_32_bits_tell_apart_and_else_counts_down(tmp_path):
    rankings = Rankings(
        ["told", "tied", "near", "huge", "none"],
        [["a", "b"], ["a", "b", "c"], ["a", "b"], ["a", "b"], []],
        [[0.1, -0.3], [2.0, 2.0, 1.0], [1.0 + 1e-12, 1.0], [2e300, 1e300], []],
    )
    write_trec(rankings, tmp_path / "r.trec", "ours")
    lines = (tmp_path / "r.trec").read_text().splitlines()
    assert lines[:5] == [
        "told Q0 a 1 0.1 ours",
        "told Q0 b 2 -0.3 ours",
        "tied Q0 a 1 3 ours",
        "tied Q0 b 2 2 ours",
        "tied Q0 c 3 1 ours",
    ]
    found = read_rankings(tmp_path / "r.trec")
    assert (found.user_ids, found.item_ids) == (rankings.user_ids[:4], rankings.item_ids[:4])
    assert found.scores == [[0.1, -0.3], [3.0, 2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize(
    ("users", "items", "tag"),
    [(["a b"], ["x"], "t"), (["a"], ["x\u00a0y"], "t"), (["a"], ["x"], ""), (["a"], ["\n"], "t")],
)
def test_trec_refuses_ids_it_cannot_hold(tmp_path, users, items, tag):
    with pytest.raises(DataError, match=r"white space.* 1 do, first"):
        write_trec(Rankings(users, [items]), tmp_path / "r.trec", tag)
    if tag:
        with pytest.raises(DataError, match="white space"):
            write_qrels({users[0]: items}, tmp_path / "q.qrels")
    assert not list(tmp_path.iterdir())


IDS = st.text(min_size=1, max_size=4).filter(lambda name: name.split() == [name])


@st.composite
def any_rankings(draw):
    users = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    lists = [draw(st.lists(IDS, max_size=6, unique=True)) for _ in users]
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    few = st.sampled_from([-1.0, -0.0, 0.0, 5e-324, 1.0])
    scores = [
        sorted(draw(st.lists(few | numbers, min_size=len(i), max_size=len(i))), reverse=True) for i in lists
    ]
    return Rankings(users, lists, draw(st.sampled_from([scores, None])))


@settings(max_examples=60, deadline=None)
@given(rankings=any_rankings(), seed=st.integers(0, 999))
def test_any_rankings_come_back_from_any_format(tmp_path_factory, rankings, seed):
    folder = tmp_path_factory.mktemp("any")
    rankings.write(folder / "wide.parquet")
    assert read_rankings(folder / "wide.parquet") == rankings
    lists = dict(zip(rankings.user_ids, rankings.item_ids, strict=True))
    assert read_rankings(save(folder / "r.json", json.dumps(lists))) == without_scores(rankings)
    if rankings.scores:
        pairs = {
            user: dict(zip(items, scores, strict=True))
            for (user, items), scores in zip(lists.items(), rankings.scores, strict=True)
        }
        assert read_rankings(save(folder / "s.json", json.dumps(pairs))) == rankings
    filled = {user: items for user, items in lists.items() if items}
    if not filled:
        return
    write_trec(rankings, folder / "r.trec", "t")
    found = read_rankings(folder / "r.trec")
    assert dict(zip(found.user_ids, found.item_ids, strict=True)) == filled
    write_qrels(lists, folder / "q.qrels")
    assert read_relevant(folder / "q.qrels") == filled
    rows = [
        (*row, place)
        for row, (*_, place) in zip(long_rows(rankings), long_rows(rankings, rank=True), strict=True)
    ]
    shuffled = [rows[n] for n in np.random.default_rng(seed).permutation(len(rows))]
    columns = dict(zip(("user_id", "item_id", "score", "rank"), zip(*shuffled, strict=True), strict=True))
    if not rankings.scores:
        del columns["score"]
    pa_parquet.write_table(pa.table(columns), folder / "long.parquet")
    found = read_rankings(folder / "long.parquet")
    assert dict(zip(found.user_ids, found.item_ids, strict=True)) == filled


@pytest.mark.model  # ranx compiles for some seconds
def test_ranx_reads_our_trec_files_and_finds_our_metrics(tmp_path):
    """Ties, lists shorter than the cut-off, several relevant; ranx itself would order ties in its own way."""
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(0)
    catalogue = [f"i{n}" for n in range(12)]
    users = [f"u{n}" for n in range(300)]
    lists = [rng.permutation(catalogue)[: rng.integers(1, 13)].tolist() for _ in users]
    scores = [np.sort(rng.integers(0, 4, len(items)))[::-1].astype(float).tolist() for items in lists]
    relevant = {user: rng.permutation(catalogue)[: rng.integers(1, 6)].tolist() for user in users}
    write_qrels(relevant, tmp_path / "q.trec")
    found = ranking_metrics(lists, list(relevant.values()), (1, 3, 10, 20))
    for rankings in (Rankings(users, lists, scores), Rankings(users, lists)):
        write_trec(rankings, tmp_path / "r.trec", "ours")
        theirs = evaluate(
            Qrels.from_file(str(tmp_path / "q.trec"), kind="trec"),
            Run.from_file(str(tmp_path / "r.trec"), kind="trec"),
            [f"{metric}@{k}" for metric in ("hit_rate", "ndcg") for k in (1, 3, 10, 20)],
        )
        for name, value in found.items():
            assert value == pytest.approx(
                theirs[name.replace("HR", "hit_rate").replace("NDCG", "ndcg")], abs=1e-9
            )
        read = read_rankings(tmp_path / "r.trec")
        assert (read.user_ids, read.item_ids) == (users, lists)


# What is refused


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.xlsx", "x", r"ending '.xlsx'. Allowed are .*TREC runs \(.trec, .run, .txt\)"),
        ("r.csv", "", "is empty; it needs at least one user. Allowed"),
        ("r.csv", "user_id,item_id,score\n", "has columns but no rows"),
        (
            "r.csv",
            "user,item_id,score\na,b,1\n",
            "lacks the column user_id. It has: user, item_id, score. Allow",
        ),
        ("r.csv", "user,item,score\na,b,1\n", "lacks the columns user_id, item_id. It has"),
        ("r.csv", "user_id,item_id\na,b\n", "neither score nor rank, so that the order is unknown. Allowed"),
        ("r.csv", "user_id,item_ids\na,b c\n", "column item_ids holds string, not lists. Allowed"),
        ("r.csv", "user_id,item_id,score\na,b,1\n,c,1\n", "user_id: 1 ids are missing, first in row 2"),
        ("r.csv", "user_id,item_id,score\na,b,1\na,  ,1\n", "item_id: 1 ids are missing, first in row 2"),
        (
            "r.csv",
            "user_id,item_id,score\na,b,1\na,c,many\na,d,nan\na,e,\na,f,inf\n",
            r"column score: 4 values are not finite numbers, first 'many' in row 2, 'nan' in row 3, None in row 4",
        ),
        ("r.tsv", "user_id\titem_id\trank\na\tb\tfirst\n", "column rank: 1 values .* 'first' in row 1"),
        (
            "r.csv",
            "user_id,item_id,score\na,b,1\na,b,2\n",
            r"r.csv: An item is listed twice for 1 .* 'b' for user 'a'",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b"]}\n{"user_id": "a", "item_ids": []}',
            "1 rows name .* 'a'",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b", "b"]}',
            "An item is listed twice .* 'b' for user 'a'",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b", null]}',
            "column item_ids: 1 ids are missing, first in row 1",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b"]}\n{"user_id": "c"}',
            "1 rows have no list, first row 2",
        ),
        ("r.jsonl", '{"user_id": 1.5, "item_ids": ["b"]}', "holds double; ids are text or whole numbers"),
        ("r.jsonl", '{"user_id": "2001-01-01", "item_ids": []}', r"holds timestamp.*; ids are text"),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b"], "scores": [1, 2]}',
            r"another number of scores .* 1 \(user",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b", "c"], "scores": [2, 1]}\n'
            '{"user_id": "d", "item_ids": ["b", "c"], "scores": [1, 2]}',
            "scores of 1 lists rise somewhere, first for user 'd'",
        ),
        (
            "r.jsonl",
            '{"user_id": "a", "item_ids": ["b"], "scores": [null]}',
            "column scores: 1 .* None in row 1",
        ),
        ("r.jsonl", '{"user_id": "a", "item_id": "b", "score": [1]}', "holds list.*; it must hold numbers"),
        ("r.jsonl", "{", "could not be read"),
        ("r.json", "{", "is not valid JSON"),
        ("r.json", "[1]", "does not give a list, or an object, for each of at least one user. Allowed"),
        ("r.json", "{}", "at least one user"),
        ("r.json", '{"a": ["x"], "b": {"x": 1}}', r"unlike the first user, 'b' has \{'x': 1\}"),
        ("r.json", '{"a": ["x"], "a": ["y"]}', "has 'a' twice in one object"),
        ("r.json", '{"a": {"x": 1, "y": 1, "x": 2}}', "has 'x' twice in one object"),
        (
            "r.json",
            '{"a": ["x"], "b": ["x", 1.5]}',
            "has the item 1.5 of user 'b'; ids are text or whole numbers",
        ),
        ("r.json", '{"a": ["x"], "b": ["x", true]}', "has the item True of user 'b'"),
        ("r.json", '{"a": ["1", 1]}', "An item is listed twice .* '1' for user 'a'"),
        ("r.json", '{"a": ["x", ""]}', "items: 1 ids are missing, first in the list of user 'a'"),
        ("r.json", '{"": ["x"]}', "users: 1 ids are missing, first in place 1"),
        ("r.json", '{"a": {"x": "1"}}', "has the score '1' of user 'a'; it must be a number"),
        ("r.json", '{"a": {"x": 1, "y": NaN}}', "score: 1 values .* first nan in the object of user 'a'"),
        ("r.trec", "\n \n", "has no line that is not empty"),
        (
            "r.trec",
            "a Q0 x 1 1 t\n\na Q0 x 1 1\n",
            r"1 of 2 lines .* not the 6 fields user_id Q0 .* line 3: 'a Q0 x 1 1'",
        ),
        ("r.run", "a Q0 x 1 1 t u", "have not the 6 fields"),
        ("r.txt", "\na Q0 x 1 high t", "column score: 1 values .* 'high' in line 2"),
        ("r.txt", "a Q0 x 1 nan t", "'nan' in line 1"),
        ("r.txt", "a Q0 x one 1 t", "column rank: 1 values .* 'one' in line 1"),
        ("r.txt", "a Q0 x 1 2 t\na Q0 x 2 1 t", "An item is listed twice .* 'x' for user 'a'"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_rankings(save(tmp_path / name, text))


def test_missing_and_binary_files_are_refused(tmp_path):
    for read in (read_rankings, read_relevant):
        with pytest.raises(DataError, match=r"r\.csv does not exist\. Allowed are"):
            read(tmp_path / "r.csv")
        for name, message in (
            ("r.trec", "is not UTF-8"),
            ("r.json", "not valid"),
            ("r.parquet", "could not be"),
        ):
            (tmp_path / name).write_bytes(b"\xff\xfe\x00a")
            with pytest.raises(DataError, match=message):
                read(tmp_path / name)


@pytest.mark.parametrize(
    ("users", "items", "scores", "message"),
    [
        (["a"], [], None, "1 users for 0 lists"),
        (
            ["a", "b", "a"],
            [[], [], []],
            None,
            r"1 rows name a user .* first 'a'.*several row ids, such as 'user/0'",
        ),
        (["a"], [["x"]], [[]], "as many scores as items"),
        (["a"], [["x"]], [], "as many scores as items"),
        (
            ["a", "b"],
            [["x"], ["y", "z"]],
            [[1.0], [2.0, math.nan]],
            "1 scores are not finite .* nan for user 'b'",
        ),
        (["a"], [["x"]], [[-math.inf]], "-inf for user 'a'"),
    ],
)
def test_rankings_are_checked_when_made(users, items, scores, message):
    with pytest.raises(DataError, match=message):
        Rankings(users, items, scores)


# Truth


def test_relevant_items_of_every_format(tmp_path):
    expected = {"u2": ["b", "a"], "u1": [], "u3": ["c"]}
    rows = [("u2", "b", 5), ("u1", "a", 0), ("u2", "a", 1), ("u3", "b", -1), ("u3", "c", 0.5)]
    for name in ("relevance", "rating"):
        lines = [f"user_id,item_id,{name}", *(",".join(map(str, row)) for row in rows)]
        assert read_relevant(save(tmp_path / "t.csv", "\n".join(lines))) == expected
    for ending in ("trec", "qrels", "txt"):
        lines = [f"{user} 0 {item} {value}" for user, item, value in rows]
        assert read_relevant(save(tmp_path / f"t.{ending}", "\n".join(lines))) == expected
    for name in ("targets", "item_ids"):
        lines = [json.dumps({"user_id": user, name: items}) for user, items in expected.items()]
        assert read_relevant(save(tmp_path / "t.jsonl", "\n".join(lines))) == expected
    assert read_relevant(save(tmp_path / "t.json", json.dumps(expected))) == expected
    graded = {"u2": {"b": 2, "x": 0, "a": 1}, "u1": {}, "u3": {"c": 0.1}}
    assert read_relevant(save(tmp_path / "t.json", json.dumps(graded))) == expected
    table = "user_id\titem_id\nu2\tb\nu3\tc\nu2\ta\n"
    assert read_relevant(save(tmp_path / "t.tsv", table)) == {"u2": ["b", "a"], "u3": ["c"]}


def test_relevant_items_keep_the_order_of_the_file(tmp_path):
    items = [f"i{n * 37 % 101}" for n in range(101)]
    lines = [f"{user} 0 {item} 1" for item in items for user in ("a", "b")]
    assert read_relevant(save(tmp_path / "t.qrels", "\n".join(lines))) == {"a": items, "b": items}


def test_relevance_goes_before_rating_and_targets_before_rankings(tmp_path):
    path = save(tmp_path / "t.csv", "user_id,item_id,rating,relevance\na,x,5,0\na,y,bad,1\n")
    with pytest.raises(DataError, match="column rating"):
        read_relevant(path)
    assert read_relevant(save(path, path.read_text().replace("bad", "0"))) == {"a": ["y"]}
    line = json.dumps({"user_id": "a", "item_ids": ["x", "y"], "targets": ["y"], "scores": [1, 2]})
    assert read_relevant(save(tmp_path / "t.jsonl", line)) == {"a": ["y"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.run", "a 0 x 1", r"ending '.run'. Allowed .* TREC qrels \(.trec, .qrels, .txt\)"),
        ("t.qrels", "a Q0 x 1 1 t", "have not the 4 fields user_id 0 item_id relevance"),
        ("t.qrels", "a 0 x yes", "column relevance: 1 values .* 'yes' in line 1"),
        ("t.qrels", "a 0 x 1\na 0 x 1", "An item is relevant twice for 1 users, first 'x' for user 'a'"),
        ("t.csv", "user_id,rating\na,1\n", "lacks the column item_id"),
        ("t.jsonl", '{"user_id": "a", "targets": "x"}', "column targets holds string, not lists. Allowed"),
        (
            "t.jsonl",
            '{"user_id": "a", "targets": []}\n{"user_id": "a", "targets": ["x"]}',
            "1 rows name .* 'a'",
        ),
        ("t.json", '{"a": "x"}', "does not give a list"),
    ],
)
def test_bad_truth_is_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_relevant(save(tmp_path / name, text))


# Side by side


def test_lists_are_aligned_and_what_does_not_fit_is_counted():
    lists, counts = align(LISTS, ["u1", "gone", "u2"], ["a", "b", "9"], on_missing="empty", on_unknown="miss")
    assert lists == [["9", "10"], [], ["b", "c", "a"]]
    assert counts == {
        "num_missing_users": 1,
        "num_extra_users": 1,
        "num_unknown_items": 2,
        "num_short_lists": 2,
    }
    lists, counts = align(LISTS, LISTS.user_ids, None)
    assert lists == LISTS.item_ids
    assert counts == {
        "num_missing_users": 0,
        "num_extra_users": 0,
        "num_unknown_items": 0,
        "num_short_lists": 2,
    }


def test_what_does_not_fit_is_an_error_unless_allowed():
    with pytest.raises(
        DataError, match=r"4 of 5 users .* no ranking, first 'w', 'x', 'y'\. .*on_missing='empty'"
    ):
        align(LISTS, ["w", "u1", "x", "y", "z"], None)
    with pytest.raises(
        DataError, match=r"2 of 5 listed items are not in .* of 3 items, first '10', 'c'\. .*'miss'"
    ):
        align(LISTS, ["u1", "u2"], ["a", "b", "9"])
    # Items of users who are not evaluated do not matter.
    assert align(LISTS, ["u10"], ["z"])[1]["num_extra_users"] == 2


def test_aligned_lists_are_measured_with_misses_in_their_places():
    lists, _ = align(LISTS, ["u2", "gone"], ["b", "a"], on_missing="empty", on_unknown="miss")
    assert ranking_metrics(lists, ["a", "b"], (2, 3), ("HR", "MRR")) == {
        "HR@2": 0.0,
        "HR@3": 0.5,
        "MRR@2": 0.0,
        "MRR@3": pytest.approx(1 / 6),
    }
