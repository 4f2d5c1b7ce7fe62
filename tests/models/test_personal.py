"""Personal adapters in the whole: one model answers each user as that user, alone and among others."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from genrec.core.errors import DataError, ModelError, RecipeError
from genrec.core.files import read_json
from genrec.data_prep import InteractionLog, ItemCatalog, leave_one_out
from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.sequence import train_sequence
from genrec.models.settings import RecLoraSettings, SASRecSettings
from genrec.models.users import UserVectors
from genrec.pipeline import Pipeline
from genrec.recipe import parse_recipe
from genrec.serving import Ask, Recommender
from genrec.tasks import Renderer, TaskSettings, known_before
from genrec.tasks.build import TaskRows
from genrec.training import ModelSettings, TrainSettings, finetune

pytestmark = pytest.mark.model

CODES = {f"i{n}": (f"<a_{n % 4}>", f"<b_{n // 4}>") for n in range(11)}
INDEX = ItemIndex("mine", CODES)
HISTORIES = [["i1", "i5", "i9", "i2"], ["i3"], ["i1", "i5"], ["i1", "i5"], []]


def personal(folder, mixing="weights", four_bit=False, **options):
    """A model whose adapters differ a lot between users."""
    lm, tokenizer = load_backbone(folder, dtype="float32", four_bit=four_bit)
    rows = torch.randn(len(INDEX.tokens), 64, generator=torch.Generator().manual_seed(2)) * 0.5
    torch.manual_seed(3)
    model = RecommenderModel.create(
        lm,
        tokenizer,
        INDEX,
        rows,
        name=folder,
        layers=None,
        adapter="qreclora" if four_bit else "reclora",
        lora_r=4,
        reclora={"user_size": 6, "experts": 3, "mixing": mixing, **options},
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "reclora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def decoder_of(model):
    renderer = Renderer(
        model.tokenizer,
        INDEX,
        "windows" if model.is_encoder_decoder else "packed",
        20,
        text_to_text=model.is_encoder_decoder,
    )
    return ConstrainedDecoder(model, renderer)


def vectors(num, seed=0):
    return np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)


@pytest.fixture(scope="module", params=["tiny_backbone", "tiny_t5"])
def decoder(request):
    return decoder_of(personal(request.getfixturevalue(request.param)))


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert [item for item, _ in a] == [item for item, _ in b]
        np.testing.assert_allclose([s for _, s in a], [s for _, s in b], atol=2e-4, rtol=1e-4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, len(HISTORIES) - 1), min_size=2, max_size=9), st.integers(0, 9), st.booleans())
def test_a_user_gets_the_same_alone_and_in_a_batch(decoder, rows, seed, repeated):
    histories, users = [HISTORIES[row] for row in rows], vectors(len(rows), seed)
    if repeated:
        users[1] = users[0]
    found = decoder.rank(histories, 5, beams=6, users=users)
    alone = [decoder.rank([h], 5, beams=6, users=users[[n]])[0] for n, h in enumerate(histories)]
    same(found, alone)
    same(decoder.rank_all(histories, 5, None, 6, 2, "", users=users), alone)
    exact = decoder.rank_exact(histories, 11, users=users)
    same([each.ranking for each in exact], decoder.rank(histories, 11, beams=11, users=users))


def test_users_of_one_history_differ_and_a_thousand_fit_in_one_batch(decoder):
    users = vectors(1000)
    found = decoder.rank([["i1", "i5"]] * 1000, 3, beams=4, users=users)
    assert len({tuple(item for item, _ in each) for each in found}) > 10
    for row in (0, 400, 999):
        same([found[row]], decoder.rank([["i1", "i5"]], 3, beams=4, users=users[[row]]))


def test_beams_that_share_a_row_get_what_beams_with_rows_of_their_own_get(tiny_backbone):
    model = personal(tiny_backbone)
    assert decoder_of(model).model._tries_sharing()
    model._shares = True
    users = vectors(len(HISTORIES))
    shared = decoder_of(model).rank(HISTORIES, 5, beams=6, users=users)
    model._shares = False
    same(shared, decoder_of(model).rank(HISTORIES, 5, beams=6, users=users))


def test_prompts_with_a_common_beginning_are_read_for_each_user(tiny_backbone):
    decoder = decoder_of(personal(tiny_backbone))
    histories = [["i1", "i5", "i9", "i2"] * 4 + [last] for last in ("i3", "i4", "i6")]
    users = vectors(3)
    alone = [decoder.rank([h], 5, users=users[[n]])[0] for n, h in enumerate(histories)]
    same(decoder.rank(histories, 5, users=users), alone)


def test_a_model_of_users_is_not_asked_without_them(decoder):
    with pytest.raises(ModelError, match=r"no vectors of users came. Give one of width 6"):
        decoder.rank([["i1"]], 3)
    with pytest.raises(ModelError, match=r"\(rows, 6\)"):
        decoder.rank([["i1"]], 3, users=np.zeros((1, 5), np.float32))


@pytest.mark.parametrize("mixing", ["weights", "outputs"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_mixed_batch_has_the_gradients_of_its_rows(tiny_backbone, mixing, checkpointing):
    model = personal(tiny_backbone, mixing, gate_dropout=0.0).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    first, users = model.first_id, torch.from_numpy(vectors(4))
    ids = first + torch.randint(0, len(INDEX.tokens), (4, 6), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()

    def gradients(parts):
        model.zero_grad()
        for rows in parts:
            loss = model(
                ids[rows],
                torch.ones_like(ids[rows]),
                labels[rows],
                num_items_in_batch=20,
                user_vectors=users[rows],
            )["loss"]
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole, single = gradients([[0, 1, 2, 3]]), gradients([[0], [1], [2], [3]])
    assert whole.keys() == single.keys()
    assert all("reclora" in name or "rows" in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, single[name], atol=1e-5, rtol=1e-3)


def test_save_load_and_merge_for_one_user(tiny_backbone, tmp_path):
    model = personal(tiny_backbone)
    model.save(tmp_path / "model")
    again = RecommenderModel.load(tmp_path / "model", INDEX)
    users = vectors(2)
    found = decoder_of(model).rank(HISTORIES[:2], 5, users=users)
    same(decoder_of(again).rank(HISTORIES[:2], 5, users=users), found)

    with pytest.raises(ModelError, match="Say for whom"):
        model.merge_and_save(tmp_path / "nobody")
    model.merge_and_save(tmp_path / "merged", user=torch.from_numpy(users[1]))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([decoder_of(model).renderer.prompt_ids(HISTORIES[1])])
    with torch.no_grad():
        states = model.states(ids, torch.ones_like(ids), user_vectors=torch.from_numpy(users[[1]]))
        logits = model.backbone.get_output_embeddings()(states)
        torch.testing.assert_close(plain(ids).logits, logits, atol=2e-4, rtol=2e-4)
    same(decoder_of(model).rank(HISTORIES[:2], 5, users=users), found)


def test_a_backbone_in_four_bits(tiny_backbone, tmp_path):
    model = personal(tiny_backbone, four_bit=True)
    users = vectors(2)
    found = decoder_of(model).rank(HISTORIES[:2], 5, users=users)
    model.save(tmp_path / "model")
    again = decoder_of(RecommenderModel.load(tmp_path / "model", INDEX))
    same(again.rank(HISTORIES[:2], 5, users=users), found)
    model.merge_and_save(tmp_path / "merged", "float32", torch.from_numpy(users[0]))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([again.renderer.prompt_ids(HISTORIES[0])])
    with torch.no_grad():
        states = model.states(ids, torch.ones_like(ids), user_vectors=torch.from_numpy(users[[0]]))
        wanted = model.backbone.get_output_embeddings()(states)
        assert (plain(ids).logits - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_words_are_chosen_for_each_user(tiny_backbone):
    model, users = personal(tiny_backbone), torch.from_numpy(vectors(3))
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7]]
    found = model.choose(prompts, [3, 4], users)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
    for row in range(3):
        torch.testing.assert_close(found[[row]], model.choose([prompts[row]], [3, 4], users[[row]]))
    states, _ = model.read([prompts[0]], keep=False, users=users[:1])
    logits = model._logits(states[:, 0])[0]
    torch.testing.assert_close(found[0], logits[[3, 4]].log_softmax(-1))


# ------------------------------------------------------------------ where vectors come from


def typed_log(num_users=60, length=12):
    """Users of two types who go through the items, one forward and one backward, from anywhere: only the type tells."""
    rng, rows = np.random.default_rng(0), []
    for user in range(num_users):
        step, item = (1 if user % 2 else -1), int(rng.integers(11))
        for time in range(length):
            rows.append((f"u{user}", f"i{item}", float(time)))
            item = (item + step) % 11
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    return InteractionLog.from_table(pa.table(columns), time="number")


@pytest.fixture(scope="module")
def split():
    return leave_one_out(typed_log())


@pytest.fixture(scope="module")
def catalog():
    return ItemCatalog.from_titles({item: f"Thing {item}" for item in CODES})


@pytest.fixture(scope="module")
def sasrec(split, catalog):
    return train_sequence(split, catalog.item_ids, SASRecSettings(width=8, epochs=2, max_history=8))[0]


@pytest.mark.parametrize("levels", [0, 2])
def test_states_and_codes_of_users(split, catalog, sasrec, levels, tmp_path):
    users = UserVectors.of_model(sasrec, catalog.item_ids, split, levels, 4)
    histories = [["i1", "i2"], ["i1", "i2", "unknown"], [], ["unknown"], ["i2", "i1"]]
    found = users.of(histories)
    assert found.shape == (5, users.size)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], users.mean)
    np.testing.assert_array_equal(found[3], users.mean)
    np.testing.assert_allclose(found[4], users.of([["i2", "i1"]])[0], atol=1e-6)
    everyone = users.of(list(split.train.values()))
    np.testing.assert_allclose(everyone.mean(0), users.mean, atol=1e-5)
    if levels:
        assert (found[[0, 4]].sum(1) == 2).all()
        assert set(np.unique(everyone)) == {0.0, 1.0}
    users.save(tmp_path / "users")
    np.testing.assert_array_equal(UserVectors.load(tmp_path / "users").of(histories), found)


def table_of(path, names, rows):
    pa_parquet.write_table(pa.table({"user_id": names, "vector": rows}), path)
    return path


def test_vectors_of_a_file(split, tmp_path):
    path = table_of(tmp_path / "v.parquet", ["u0", "u1", "later"], [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    users = UserVectors.of_file(path, split)
    found = users.of([["i1"]] * 4, ["u0", "later", None, "nobody"])
    np.testing.assert_array_equal(found, [[1, 0], [5, 5], [0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(DataError, match="give user_ids"):
        users.of([["i1"]])
    users.save(tmp_path / "users")
    np.testing.assert_array_equal(UserVectors.load(tmp_path / "users").of([[]], ["u1"]), [[0, 1]])


@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (["u0", "u1"], [[1.0], [1.0, 2.0]], r"lengths \[1, 2\]"),
        (["u0", "u1"], [[1.0], [float("nan")]], "'u1' is not finite"),
        (["a", "b"], [[1.0], [2.0]], "none of the 60"),
    ],
)
def test_wrong_files_are_told(split, tmp_path, names, rows, said):
    with pytest.raises(DataError, match=said):
        UserVectors.of_file(table_of(tmp_path / "v.parquet", names, rows), split)
    with pytest.raises(DataError, match="columns user_id and vector"):
        UserVectors.of_file(tmp_path / "missing.parquet", split)


@settings(max_examples=20)
@given(st.sampled_from(["packed", "windows", "prompt"]), st.integers(0, 4), st.integers(1, 6), st.data())
def test_what_a_row_knows_ends_before_what_it_learns(form, context, size, data):
    split, catalog = leave_one_out(typed_log(4, 9)), ItemCatalog.from_titles({i: i for i in CODES})
    context = context if form == "packed" else 0
    tasks = TaskSettings(
        form=form, max_history=size + context, context=context, mixture={"next_item": 1, "item_to_text": 1}
    )
    rows = TaskRows(split, catalog, INDEX, tasks).dataset()["train"]
    known = list(known_before(rows["task"], rows["key"], split, tasks))
    row = data.draw(st.integers(0, len(rows) - 1))
    user, before = known[row]
    if rows["task"][row] == "item_to_text":
        assert (user, before) == (None, [])
        return
    learned = rows["completion"][row]
    codes = ["".join(CODES[item]) for item in split.train[user]]
    assert learned.strip().startswith(codes[len(before)])
    assert before == split.train[user][: len(before)]
    if form == "packed":
        assert rows["prompt"][row] == "".join(codes[max(0, len(before) - context) : len(before)])
        assert learned == "".join(codes[len(before) : len(before) + learned.count("<a_")])
        assert learned.count("<a_") <= size


def test_context_learns_every_item_once_a_cut(split, catalog):
    rows = TaskRows(split, catalog, INDEX, TaskSettings(max_history=5, context=2, cuts=2)).dataset()["train"]
    for user, history in split.train.items():
        own = [row for row in rows if row["key"].startswith(f"{user}/")]
        assert sum(row["completion"].count("<a_") for row in own) == 2 * len(history)
    for wrong, said in (({"context": 50}, "leaves no item"), ({"context": 2, "form": "prompt"}, "packed")):
        with pytest.raises(ValidationError, match=said):
            TaskSettings(**wrong)


# ------------------------------------------------------------------ whole runs


def recipe(folder, log_file, backbone, **train):
    return parse_recipe(
        {
            "name": "personal",
            "run_dir": str(folder),
            "data": {"source": str(log_file), "time": "number", "user_core": 1, "item_core": 1},
            "index": {"method": "independent"},
            "tasks": {"max_history": 1, "form": "windows"},
            "model": {"backbone": backbone, "dtype": "float32"},
            "train": {
                "adapter": "reclora",
                "lora_r": 4,
                "epochs": 10,
                "learning_rate": 0.01,
                "rows_learning_rate": 0.01,
                "exclude_history": False,
                "checkpoint_steps": 0,
                "report_to": "none",
                **train,
            },
            "sasrec": {"width": 8, "epochs": 2, "max_history": 8, "exclude_history": False},
            "gru4rec": {"exclude_history": False},
            "evaluate": {"ks": [1], "baselines": ["popularity"], "exclude_history": False},
        }
    )


@pytest.fixture(scope="module")
def log_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "log.parquet"
    pa_parquet.write_table(typed_log().table, path)
    return path


@pytest.fixture(scope="module")
def typed_run(tiny_backbone, log_file, tmp_path_factory):
    """A run that reads one item and the user's type, which only the vector tells."""
    folder = tmp_path_factory.mktemp("run")
    names = [f"u{n}" for n in range(60)]
    path = table_of(folder / "types.parquet", names, [[1.0, 0.0] if n % 2 else [0.0, 1.0] for n in range(60)])
    reclora = {"vectors": "file", "file": str(path), "experts": 2}
    run = Pipeline(recipe(folder / "run", log_file, tiny_backbone, reclora=reclora)).run_until("evaluate")
    return run


def test_only_the_vector_tells_two_users_apart(typed_run):
    recommender = Recommender.from_pretrained(typed_run)
    forward, backward = recommender.recommend([["i5"], ["i5"]], user_ids=["u1", "u2"], k=1)
    assert (forward[0].item_id, backward[0].item_id) == ("i6", "i4")
    metrics = read_json(typed_run / "metrics.json")
    # Whoever knows the last item alone has one half.
    assert metrics["model"]["metrics"]["HR@1"] > 0.8


def test_a_run_of_users_is_shared_without_their_vectors(typed_run, tmp_path):
    recommender = Recommender.from_pretrained(typed_run)
    with pytest.raises(DataError, match="give user_ids"):
        recommender.recommend([["i5"]])
    recommender.save_pretrained(tmp_path / "shared")
    assert not list((tmp_path / "shared").rglob("vectors.parquet"))
    elsewhere = Recommender.from_pretrained(tmp_path / "shared")
    cold = recommender.recommend([["i5"]], user_ids=[None], k=3)
    assert elsewhere.recommend([["i5"]], user_ids=["u1"], k=3) == cold
    weights = recommender.gate_weights([["i5"]] * 3, user_ids=["u1", "u2", "u3"])
    assert len(weights) == 14  # seven linear layers in each of two
    for each in weights.values():
        np.testing.assert_allclose(each.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(each[0], each[2], atol=1e-6)  # of one type
    assert (
        max(np.abs(each[0] - each[1]).max() for each in weights.values()) > 0.1
    )  # some layer tells types apart
    explained = recommender.explain(["i5"], user_id="u1", k=2)
    assert explained.recommendations == recommender.recommend([["i5"]], user_ids=["u1"], k=2)[0]


def test_different_requests_of_different_users_are_answered_together(typed_run):
    recommender = Recommender.from_pretrained(typed_run)
    users = ["u1", "u2", None, "u3"]
    found = recommender.recommend_each([Ask(["i5"], k=3, user_id=user) for user in users])
    alone = [recommender.recommend([["i5"]], user_ids=[user], k=3)[0] for user in users]
    assert [[r.item_id for r in each] for each in found] == [[r.item_id for r in each] for each in alone]
    for user, each in zip(users, found, strict=True):
        scores = recommender.score(["i5"], [r.item_id for r in each], user_id=user)
        np.testing.assert_allclose(scores, [r.score for r in each], atol=1e-4)


def test_a_model_of_one_user_is_written(typed_run, tmp_path):
    recommender = Recommender.from_pretrained(typed_run)
    with pytest.raises(ModelError, match="Say for whom"):
        recommender.merge_and_save(tmp_path / "nobody")
    recommender.merge_and_save(tmp_path / "u1", history=["i5"], user_id="u1")
    recommender.export(tmp_path / "exported", user_id="u2")


@pytest.mark.parametrize("source", ["sasrec", "codes"])
def test_states_of_sasrec_through_a_whole_run(tiny_backbone, log_file, tmp_path, source):
    wanted = recipe(
        tmp_path / "run",
        log_file,
        tiny_backbone,
        reclora={"vectors": source, "experts": 2, "codebook_size": 4},
        epochs=1,
        validate_steps=20,
        validate_users=5,
    )
    run = Pipeline(wanted).run_until("evaluate")
    assert Pipeline(wanted).run_until("evaluate") == run
    recommender = Recommender.from_pretrained(run)
    users = recommender._users
    assert users.size == 8  # of the state, and of two levels of four codes
    by_user = recommender.recommend(user_ids=["u1", "u2"], k=3)
    own = [recommender.history(user) for user in ("u1", "u2")]
    assert recommender.recommend(own, k=3) == by_user
    recommender.save_pretrained(tmp_path / "shared")
    assert Recommender.from_pretrained(tmp_path / "shared").recommend(own, k=3) == by_user


def test_rows_without_vectors_are_refused(tiny_backbone, split, catalog, tmp_path):
    rows = TaskRows(split, catalog, INDEX).dataset()
    with pytest.raises(RecipeError, match="needs row_vectors"):
        finetune(
            tiny_backbone,
            rows,
            INDEX,
            catalog,
            split,
            tmp_path,
            settings=TrainSettings(adapter="reclora"),
            model=ModelSettings(dtype="float32"),
        )


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"adapter": "reclora", "lora_r": 4, "reclora": {"slices": True, "experts": 3}}, "multiple"),
        ({"adapter": "reclora", "reclora": {"routing": "top_k", "top_k": 9}}, "more than the 8 experts"),
        ({"adapter": "reclora", "lora_options": {"use_rslora": True}}, "train.reclora"),
        ({"reclora": {"vectors": "file"}}, "give a file exactly with vectors=file"),
    ],
)
def test_settings_that_contradict_each_other_are_told(train, said):
    with pytest.raises((ValidationError, RecipeError), match=said):
        parse_recipe({"train": train})


def test_iloras_slices_are_a_setting(tiny_backbone):
    settings = RecLoraSettings(experts=4, slices=True, mixing="outputs", gate_hidden=0)
    model = personal(tiny_backbone, **(settings.adapter | {"user_size": 6}))
    assert model.peft.peft_config["default"].expert_rank == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_batches_are_one_batch(tiny_backbone, split, catalog, tmp_path, checkpointing):
    """Rows of different users in batches of one, four times, or of four once: the same step."""
    tasks = TaskSettings(max_history=6, context=3)
    rows = TaskRows(split, catalog, INDEX, tasks).dataset()
    known = list(known_before(rows["train"]["task"], rows["train"]["key"], split, tasks))
    own = vectors(len(split.train))
    of_user = dict(zip(split.train, own, strict=True))
    row_vectors = np.stack([of_user[user] for user, _ in known])
    weights = []
    for accumulation in (1, 4):
        folder = tmp_path / str(accumulation)
        finetune(
            tiny_backbone,
            rows,
            INDEX,
            catalog,
            split,
            folder,
            tasks=tasks,
            settings=TrainSettings(
                adapter="reclora",
                reclora=RecLoraSettings(experts=3, gate_dropout=0.0),
                batch_size=4,
                accumulation=accumulation,
                max_steps=4,
                gradient_checkpointing=checkpointing and accumulation == 4,
                checkpoint_steps=0,
                report_to=(),
            ),
            model=ModelSettings(dtype="float32"),
            row_vectors=row_vectors,
        )
        weights.append(load_file(folder / "model" / "adapter_model.safetensors"))
    assert any("reclora_gate" in name for name in weights[0])
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=2e-5, rtol=1e-3)
