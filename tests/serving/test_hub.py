"""Runs, indices and prepared data sets to a stand-in of the Hub and back, and the cards that go with them."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml
from hub import TOKEN, point_at, stand_in

from genrec.cli import main
from genrec.core.errors import DataError, RecipeError, RunError
from genrec.core.hub import check_repo_id, check_shareable, is_repo_id, pull, without_private_paths
from genrec.data_prep import DataSettings, load_dataset, prepare, push_dataset
from genrec.indexing import ItemIndex
from genrec.pipeline import Pipeline
from genrec.recipe import parse_recipe
from genrec.serving import Recommender
from genrec.serving.card import slice_lines
from genrec.serving.licence import licence_of


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder, below which data and runs lie."""
    return tmp_path_factory.mktemp("home") / "jane.doe"


@pytest.fixture(scope="module")
def run(home, tiny_backbone, log, items):
    shutil.copytree(tiny_backbone, home / "tiny")
    (home / "tiny" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A tiny model\n")
    (home / "data").mkdir()
    log.write(home / "data" / "interactions.parquet")
    items.write(home / "data" / "items.parquet")
    recipe = parse_recipe(
        {
            "name": "planted",
            "run_dir": str(home / "run"),
            "data": {"source": str(home / "data"), "item_core": 1},
            "index": {"method": "rq_kmeans", "levels": 2, "codebook_size": 6, "text_encoder": "words"},
            "model": {"backbone": str(home / "tiny"), "dtype": "float32"},
            "train": {"epochs": 1, "max_steps": 3, "exclude_history": False},
            "evaluate": {"ks": [1, 5], "baselines": ["popularity"]},
        }
    )
    return Pipeline(recipe).run_until("evaluate")


@pytest.fixture
def hub(tmp_path, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    with stand_in() as server:
        point_at(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.mark.model
def test_a_run_comes_back_from_the_hub_as_it_went(run, hub, capsys):
    recommender = Recommender.from_pretrained(run)
    dry = recommender.push_to_hub("me/planted", dry_run=True)
    assert not hub.repos
    files = recommender.push_to_hub("me/planted")
    assert files == dry
    repo = hub.repos["models/me/planted"]
    assert repo["private"]
    assert {name: len(content) for name, content in repo["files"].items()} == files
    again = Recommender.from_pretrained("me/planted")
    histories = [["i1", "i18"], ["i5"], []]
    assert again.recommend(histories) == recommender.recommend(histories)
    assert 'from_pretrained("me/planted")' in repo["files"]["README.md"].decode()
    # A file of another model that was there before goes, one of the owner stays.
    repo["files"] |= {"model/old.safetensors": b"old", "picture.svg": b"<svg/>"}
    assert recommender.push_to_hub("me/planted") == files
    assert set(repo["files"]) == {*files, "picture.svg"}


@pytest.mark.model
def test_no_token_and_no_user_data_go_up(run, hub, home):
    Recommender.from_pretrained(run).push_to_hub("me/planted")
    pushed = hub.repos["models/me/planted"]["files"]
    users = {str(user) for user in pq.read_table(run / "histories.parquet")["user_id"].to_pylist()}
    for name, content in pushed.items():
        assert Path(name).name not in {
            "histories.parquet",
            "rankings.parquet",
            "values.parquet",
            "vectors.parquet",
        }
        assert TOKEN.encode() not in content
        assert str(home).encode() not in content, name
        assert b"jane.doe" not in content, name
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            assert "user_id" not in table.column_names
            assert not users & {str(value) for column in table.columns for value in column.to_pylist()}
    assert "~/tiny" in pushed["recipe.yaml"].decode()


@pytest.mark.model
def test_what_must_not_go_up_is_refused(run, tmp_path, monkeypatch):
    folder = Recommender.from_pretrained(run).save_pretrained(tmp_path / "shared")
    monkeypatch.setenv("HF_TOKEN", "mine-and-no-one-elses")
    assert "model/adapter_model.safetensors" in check_shareable(folder)
    for name, content, told in (
        ("notes.md", b"token mine-and-no-one-elses", "an access token"),
        ("notes.txt", b"hf_" + b"a" * 34, "an access token"),
        ("notes.json", f'"{Path.home()}/x"'.encode(), "names the home folder"),
        ("users/vectors.parquet", b"PAR1", "data of single users"),
        ("histories.parquet", b"PAR1", "data of single users"),
        ("model/pytorch_model.bin", b"\x80", "can run code"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        with pytest.raises(RunError, match=told):
            check_shareable(folder)
        (folder / name).unlink()
    (tmp_path / "secret.txt").write_text("a")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(RunError, match="leads out of it"):
        check_shareable(folder)


@pytest.mark.model
def test_the_model_card_is_what_the_hubs_own_classes_read(run):
    card = huggingface_hub.ModelCard.load(run / "README.md")
    report = json.loads((run / "metrics.json").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {name: each.metric_value for name, each in found.items()} == {
        name: round(report["model"]["metrics"][name], 4) for name in ("HR@1", "HR@5", "NDCG@5")
    }
    assert found["HR@5"].task_type == "recommendation"
    assert found["HR@5"].dataset_args["log_sha256"] == report["data"]["log_sha256"]
    assert card.data.license == "cc-by-nc-4.0"
    assert "forbids commercial use" in card.text
    assert "| Popularity |" in card.text
    assert 'By cold items: all are "warm".' in card.text
    again = huggingface_hub.ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()


def test_the_card_says_in_words_who_is_served_worst():
    def group(name, value, half, **more):
        interval = [value - half, value + half]
        return {
            "group": name,
            "num_users": 40,
            "metrics": {"HR@5": 1.0, "NDCG@5": value},
            "intervals": {"NDCG@5": interval},
        } | more

    slices = {
        "history length": [
            group("< 5", 0.5, 0.1),
            group("5-10", 0.2, 0.05),
            group("> 20", 0.9, 0.1, few=True),
        ],
        "cold items": [group("cold", 0.1, 0.1), group("warm", 0.2, 0.1)],
        "user group": [group("a", 0.1, 0.1), group("b", 0.3, 0.1, few=True)],
    }
    assert slice_lines({"slices": slices}) == [
        'By history length: worst "5-10" (NDCG@5 0.2000 [0.1500, 0.2500], 40 users), best "< 5" (NDCG@5 0.5000 '
        "[0.4000, 0.6000], 40 users); their intervals do not overlap. 1 group(s) of fewer than 30 users are not compared.",
        'By cold items: worst "cold" (NDCG@5 0.1000 [0.0000, 0.2000], 40 users), best "warm" (NDCG@5 0.2000 '
        "[0.1000, 0.3000], 40 users); their intervals overlap, so that it may be chance.",
        "By user group: no two groups are large enough to be compared. 1 group(s) of fewer than 30 users are not compared.",
    ]


@pytest.mark.parametrize(
    ("front", "use", "told"),
    [
        ("license: apache-2.0", "free", "be used commercially"),
        ("license: cc-by-nc-sa-4.0", "forbidden", "forbids commercial use"),
        ("license: llama3.1", "conditions", "only under its conditions"),
        ("license: other\nlicense_name: qwen-research\nlicense_link: LICENSE", "forbidden", "qwen-research"),
        ("license: other\nlicense_name: of-our-own", "unknown", "not known to genrec"),
        ("tags: [none]", "unknown", "licence of the base model it is not known"),
    ],
)
def test_a_licence_is_inherited_with_what_it_says_of_commercial_use(front, use, told, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Model\n")
    licence = licence_of(str(tmp_path))
    assert licence.commercial == use
    assert told in licence.sentence("it")
    assert ("Warning" in licence.sentence("it")) == (use != "free")
    assert licence.front == {k: v for k, v in yaml.safe_load(front).items() if k.startswith("license")}


def test_licences_without_a_card_beside_the_model(hub, monkeypatch):
    assert licence_of("smollm2-135m-instruct").id == "apache-2.0"
    assert "no licence is inherited" in licence_of("new").sentence("new")
    hub.repos["models/org/base"] = {"private": False, "files": {"README.md": b"---\nlicense: mit\n---\n"}}
    assert licence_of("org/base").id == "mit"
    assert licence_of("org/nothing").id == ""


@pytest.mark.model
def test_the_command_tells_run_index_and_data_set_apart(run, hub, home, capsys):
    assert main(["push", str(run), "me/planted", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "kB  model/adapter_model.safetensors" in out
    assert main(["push", str(run / "index"), "me/index", "--dry-run"]) == 0
    assert capsys.readouterr().out.split()[2::3][:1] == ["README.md"]
    assert main(["push", str(run / "data"), "me/data", "--dry-run"]) == 0
    assert "interactions.parquet" in capsys.readouterr().out
    assert not hub.repos
    assert main(["push", str(run / "model"), "me/x"]) == 1
    assert "neither a finished run" in capsys.readouterr().err
    assert main(["push", str(run / "data"), "me/data"]) == 1
    assert "--i-may-share-user-data" in capsys.readouterr().err
    assert not hub.repos
    assert main(["push", str(run / "data"), "me/data", "--i-may-share-user-data"]) == 0
    assert hub.repos["datasets/me/data"]["private"]
    assert main(["push", str(run / "index"), "me/index", "--public"]) == 0
    assert not hub.repos["models/me/index"]["private"]


def test_an_index_comes_back_from_the_hub(hub):
    index = ItemIndex("mine", {"a": ("<a_1>", "<b_1>"), "b": ("<a_1>", "<b_2>")})
    assert index.push_to_hub("me/index", dry_run=True).keys() == {"README.md", "index.json", "index.parquet"}
    assert not hub.repos
    index.push_to_hub("me/index")
    with pytest.raises(RunError, match="neither a folder nor a Hub repository"):
        ItemIndex.load("me/other")
    again = ItemIndex.load("me/index")
    assert (again.codes, again.hash, again.tokens) == (index.codes, index.hash, index.tokens)
    card = huggingface_hub.ModelCard(hub.repos["models/me/index"]["files"]["README.md"].decode())
    assert "item-index" in card.data.tags
    assert "collision rate 0.0000" in card.text
    assert 'ItemIndex.load("me/index")' in card.text


@pytest.fixture
def prepared(home, log, items, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    log.write(folder / "interactions.parquet")
    items.write(folder / "items.parquet")
    prepare(DataSettings(source=str(folder), item_core=1), tmp_path / "prepared")
    return tmp_path / "prepared"


def test_a_prepared_data_set_comes_back_from_the_hub(prepared, hub, tmp_path, capsys):
    with pytest.raises(DataError, match="data of users"):
        push_dataset(prepared, "me/data")
    assert not hub.repos
    push_dataset(prepared, "me/data", may_share_user_data=True)
    assert "who took what" in capsys.readouterr().err
    files = hub.repos["datasets/me/data"]["files"]
    assert set(files) == {
        "README.md",
        "interactions.parquet",
        "items.parquet",
        "manifest.json",
        "report.json",
    }
    report = prepare(DataSettings(source="hub:me/data", item_core=1), tmp_path / "again")
    before = json.loads((prepared / "report.json").read_text())
    assert (report["log_sha256"], report["split_sha256"]) == (before["log_sha256"], before["split_sha256"])
    assert report["origin"] == before["origin"]
    assert pq.read_table(tmp_path / "again" / "items.parquet").equals(
        pq.read_table(prepared / "items.parquet")
    )
    files["interactions.parquet"] = files["items.parquet"]
    with pytest.raises(DataError, match="interactions.parquet in .* is not what manifest"):
        load_dataset("hub:me/data")


def test_the_data_set_card_is_what_the_hubs_own_classes_read(prepared, tmp_path):
    card = huggingface_hub.DatasetCard.load(prepared / "README.md")
    assert card.data.license == "other"
    assert card.data.size_categories == ["n<1K"]
    assert "data of users" in card.text
    assert str(tmp_path) not in str(card)
    import datasets

    # The card's own configurations tell log and catalogue apart.
    found = datasets.load_dataset(str(prepared), "items", split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == pq.read_metadata(prepared / "items.parquet").num_rows


def test_terms_and_origin_are_carried_from_the_raw_set_to_the_card(tmp_path):
    raw = tmp_path / "ml"
    raw.mkdir()
    rows = [f"{user}::{item}::5::97830076{item}\n" for user in range(3) for item in range(6)]
    (raw / "ratings.dat").write_text("".join(rows))
    (raw / "movies.dat").write_text("".join(f"{item}::Film {item} (1995)::Drama\n" for item in range(6)))
    core = {"user_core": 1, "item_core": 1}
    prepare(DataSettings(source=str(raw), **core), tmp_path / "first")
    prepare(DataSettings(source=str(tmp_path / "first"), **core), tmp_path / "second")
    for folder in ("first", "second"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "no commercial use without GroupLens' permission, no redistribution" in card
        assert "Source: ml, read as" in card


def test_shared_texts_name_neither_the_home_folder_nor_logins(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    text = "a: /home/jane/x\nb: /home/janet/y\nc: postgres://jane:secret@host/db\nd: https://a.b/c\n"
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "tokenizer.json").write_text('{"/home/jane": 1}')
    without_private_paths(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == (
        "a: ~/x\nb: /home/janet/y\nc: postgres://host/db\nd: https://a.b/c\n"
    )
    assert (tmp_path / "tokenizer.json").read_text() == '{"/home/jane": 1}'


def test_a_public_repository_is_not_filled_with_what_should_be_private(prepared, hub):
    hub.repos["datasets/me/data"] = {"private": False, "files": {}}
    with pytest.raises(RunError, match="exists and is public"):
        push_dataset(prepared, "me/data", may_share_user_data=True)
    assert not hub.repos["datasets/me/data"]["files"]


def test_a_refusal_of_the_hub_is_said(prepared, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(RunError, match="(?s)did not take me/data.*hf auth login"):
        push_dataset(prepared, "me/data", may_share_user_data=True)


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "me/../up",
        "me/..",
        "/etc/passwd",
        "me/a/b",
        "me/a..b",
        "me",
        "",
        "me/a b",
        "me/x.git",
        "a\n/b",
        ".a/b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name, hub):
    assert not is_repo_id(name)
    with pytest.raises(RunError, match="no name of a Hub repository"):
        check_repo_id(name)
    with pytest.raises(RunError, match="neither a folder nor"):
        pull(name, "model", "a finished run")
    assert not hub.asked


def test_files_of_a_repository_that_lead_out_of_the_cache_are_refused(hub, tmp_path):
    for name in ("../../../../evil.json", "model/../../../../../evil.json", str(tmp_path / "evil.json")):
        hub.repos["models/me/evil"] = {"private": True, "files": {"index.json": b"{}", name: b"{}"}}
        with pytest.raises(RunError, match="can be read"):
            pull("me/evil", "model", "a finished run")
        assert not list(tmp_path.rglob("evil.json"))
        hub.repos.clear()


@pytest.fixture
def elsewhere(tmp_path, home):
    """A stand-in, and the environment of a process that finds it by HF_ENDPOINT alone."""
    with stand_in() as server:
        yield (
            server,
            os.environ
            | {
                "HF_ENDPOINT": server.url,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(tmp_path / "hf"),
                "HF_TOKEN": TOKEN,
                "HOME": str(home),
            },
        )


def test_an_index_in_a_fresh_process(elsewhere, tmp_path):
    server, env = elsewhere
    index = ItemIndex("mine", {"a": ("<a_1>",), "b": ("<a_2>",)})
    index.save(tmp_path / "index")
    code = (
        "import sys, genrec; from genrec.cli import main; main(['push', sys.argv[1], 'me/index'])\n"
        "print(genrec.ItemIndex.load('me/index').hash)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == index.hash
    assert server.repos["models/me/index"]["private"]


@pytest.mark.model
@pytest.mark.slow
def test_a_run_in_fresh_processes(run, elsewhere):
    server, env = elsewhere
    push = [sys.executable, "-m", "genrec", "push", str(run), "me/planted"]
    subprocess.run(push, env=env, check=True, capture_output=True)
    ask = [sys.executable, "-m", "genrec", "recommend", "me/planted", "--history", "i1", "i5", "--json"]
    far = subprocess.run(ask, env=env, check=True, capture_output=True).stdout
    near = Recommender.from_pretrained(run).recommend([["i1", "i5"]])[0]
    assert [each["item_id"] for each in json.loads(far)] == [each.item_id for each in near]
    assert yaml.safe_load(server.repos["models/me/planted"]["files"]["recipe.yaml"])["name"] == "planted"


@pytest.mark.parametrize("name", ["..", "../up", "/up", "a/b", ""])
def test_names_of_judged_rankings_cannot_lead_out_of_the_run(name, tmp_path):
    pipeline = Pipeline(parse_recipe({"run_dir": str(tmp_path / "run")}))
    with pytest.raises(RecipeError, match="one that a folder can have"):
        pipeline.judge_file(tmp_path / "any.csv", name)
    assert not list(tmp_path.iterdir())
