import json

import numpy as np
import pytest

from genrec.core.errors import DataError, RecipeError, RunError
from genrec.evaluation import ranking_metrics
from genrec.evaluation.offline import compare_runs, comparison_text, score_file, score_table


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_file_is_scored_against_a_file_of_relevant_items(tmp_path):
    lists = {"u": ["a", "b", "c"], "v": ["c"], "w": ["b", "a"], "x": ["a"]}
    truth = {"w": ["a"], "u": ["b", "d"], "v": ["a"], "z": []}
    rankings, relevant = write(tmp_path / "r.json", lists), write(tmp_path / "q.json", truth)
    with pytest.raises(DataError, match=r"1 of 4 users to be evaluated have no ranking, first 'z'"):
        score_file(rankings, relevant, ("HR",), (1, 2))
    found = score_file(rankings, relevant, ("HR", "NDCG"), (1, 2), on_missing="empty")
    expected = ranking_metrics([lists[u] for u in "wuv"], [truth[u] for u in "wuv"], (1, 2))
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected)
    assert found["counts"] == {
        "num_missing_users": 1,
        "num_extra_users": 1,
        "num_unknown_items": 0,
        "num_short_lists": 3,
        "num_users": 4,
        "num_without_relevant": 1,
    }
    assert "HR@2" in score_table(found)
    assert "1 missing users" in score_table(found)


def test_truth_without_anything_and_unknown_metrics_are_refused(tmp_path):
    rankings = write(tmp_path / "r.json", {"u": ["a"]})
    with pytest.raises(DataError, match="no relevant item of any user"):
        score_file(rankings, write(tmp_path / "q.json", {"u": []}), ("HR",), (1,))
    with pytest.raises(RecipeError, match="Unknown ranking metric 'HT@1'"):
        score_file(rankings, write(tmp_path / "q.json", {"u": ["a"]}), ("HT",), (1,))


def run_of(folder, hits, **protocol):
    """An evaluated run of 40 users whose HR@5 is given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    values = np.array(hits, float)
    users = [f"u{n}" for n in range(len(values))]
    table = {"model": ["model"] * len(users), "row_id": users, "user_id": users, "HR@5": values}
    pq.write_table(pa.table(table), folder / "values.parquet")
    entry = {"name": folder.name, "metrics": {"HR@5": values.mean()}, "intervals": {"HR@5": [0, 1]}}
    about = {
        "data_hash": "d",
        "split": "leave-one-out",
        "on": "test",
        "rows_hash": "r",
        "candidates": "all items",
        "exclude_history": True,
        "num_items": 9,
        "num_users": 40,
        "num_rows": 40,
        "tie_rule": "t",
    }
    report = {"run": folder.name, "seed": 0, "protocol": about | protocol, "model": entry, "baselines": {}}
    write(folder / "metrics.json", report)
    return folder


def test_runs_are_compared_by_paired_tests_corrected_for_their_number(tmp_path):
    good, same = (
        run_of(tmp_path / "good", [1] * 30 + [0] * 10),
        run_of(tmp_path / "same", [1] * 30 + [0] * 10),
    )
    bad = run_of(tmp_path / "bad", [1] * 10 + [0] * 30)
    found = compare_runs([good, same, bad])
    assert [(t["a"], t["b"]) for t in found["tests"]] == [
        (str(good), str(same)),
        (str(good), str(bad)),
        (str(same), str(bad)),
    ]
    alike, ahead, _ = found["tests"]
    assert (alike["difference"], alike["p"]) == (0, 1)
    assert ahead["difference"] == 0.5
    assert ahead["p_holm"] == pytest.approx(min(1, ahead["p"] * 3))
    text = comparison_text(found)
    assert "not told apart" in text
    assert f"{good} - {bad}: +0.5000" in text
    assert "ahead" in text


@pytest.mark.parametrize(
    "changed",
    [
        {"data_hash": "x"},
        {"rows_hash": "x"},
        {"candidates": "9 sampled"},
        {"exclude_history": False},
        {"on": "valid"},
    ],
)
def test_runs_that_were_not_measured_alike_are_refused(tmp_path, changed):
    one, other = run_of(tmp_path / "one", [1, 0]), run_of(tmp_path / "other", [1, 0], **changed)
    with pytest.raises(RunError, match=f"cannot be compared.*{next(iter(changed))}: "):
        compare_runs([one, other])


def test_what_is_no_evaluated_run_is_refused(tmp_path):
    one = run_of(tmp_path / "one", [1, 0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is not evaluated.*genrec evaluate"):
        compare_runs([one, tmp_path / "empty"])
    for runs in ([one], [one, one], []):
        with pytest.raises(RunError, match="two or more different runs"):
            compare_runs(runs)
