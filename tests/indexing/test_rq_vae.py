import numpy as np
import pytest

from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexInputs, IndexSettings, build_index
from genrec.indexing import rq_vae as module
from genrec.indexing.codes import numbers_of
from genrec.indexing.settings import RQVAESettings

pytest.importorskip("torch")
pytestmark = pytest.mark.model


def planted(per_group=40, groups=4, width=12, seed=0):
    """Item vectors in well separated groups, given as those of a sequence recommender."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width)) * 4
    group = np.repeat(np.arange(groups), per_group)
    return group, centres[group] + rng.normal(size=(len(group), width))


def inputs(vectors, state=None, collisions="next_free", **changes):
    options = {"hidden": (32,), "code_size": 8, "epochs": 30, "check_epochs": 10, "batch_size": 64} | changes
    settings = IndexSettings(
        levels=3,
        codebook_size=8,
        vectors="collaborative",
        collaborative_vectors="sasrec",
        collisions=collisions,
        rq_vae=RQVAESettings(**options),
    )
    items = ItemCatalog.from_titles({str(n): None for n in range(len(vectors))})
    return IndexInputs(items, {}, settings, vectors, state)


def build(*arguments, **changes):
    return module.RQVAE().build(inputs(*arguments, **changes))


def test_first_tokens_are_of_one_group_each():
    group, vectors = planted()
    index = build(vectors)
    first = numbers_of(index.codes.values(), 1)[:, 0]
    pure = sum(np.bincount(group[first == token]).max() for token in np.unique(first)) / len(group)
    assert pure > 0.95
    assert len(set(index.codes.values())) == len(vectors)


def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path, monkeypatch):
    _, vectors = planted()
    whole = build(vectors, diversity_weight=0.01, collaborative_weight=0.1)
    state = tmp_path / "state.pt"
    looks = []

    def cut(self, look=module._Trainer._look):
        looks.append(look(self))
        if len(looks) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Trainer, "_look", cut)
        with pytest.raises(KeyboardInterrupt):
            build(vectors, state, diversity_weight=0.01, collaborative_weight=0.1)
    assert state.exists()
    again = build(vectors, state, diversity_weight=0.01, collaborative_weight=0.1)
    assert again.codes == whole.codes
    assert again.report["training"] == whole.report["training"]
    other = build(vectors, state)  # what was begun on other settings is not taken up
    assert [entry["epoch"] for entry in other.report["training"]] == [0, 10, 20, 30]


def test_dead_codes_come_back():
    _, vectors = planted(per_group=200)
    trainer = module._Trainer(vectors.astype(np.float32), inputs(vectors, epsilon=0.0))
    trainer.codebooks.data[:, 1:] = 1e3  # all items take the first code
    trainer.run()
    assert trainer.history[0]["usage"] == [1 / 8] * 3
    assert min(trainer.history[-1]["usage"]) >= 7 / 8


def test_sinkhorn_at_the_last_level_makes_collisions_fewer():
    rates = {}
    for epsilon in (0.0, 0.003):
        _, vectors = planted(per_group=30, seed=1)
        rates[epsilon] = build(vectors, epsilon=epsilon).report["collision_rate_before"]
    assert rates[0.003] <= rates[0.0]


def test_the_collaborative_term_brings_codes_to_the_collaborative_vectors(monkeypatch):
    rng = np.random.default_rng(0)
    taste = rng.integers(4, size=160)
    monkeypatch.setattr(module, "_collaborative", lambda *_: np.eye(4, 8)[taste] * 4)
    vectors = np.hstack([rng.normal(size=(160, 8)), np.eye(4)[taste]])

    def told_apart(weight):
        index = build(vectors, collaborative_weight=weight, epochs=150)
        codes = numbers_of(index.codes.values(), 3)
        quantised = sum(index.state["codebooks"][level][codes[:, level]] for level in range(3))
        return np.mean((quantised @ np.eye(4, 8).T).argmax(1) == taste)

    assert told_apart(0.0) < 0.5
    assert told_apart(1.0) > 0.8


def test_collaborative_vectors_of_another_width_keep_their_leading_axes():
    _, vectors = planted()
    found = module._collaborative(inputs(vectors, code_size=20), None)
    assert found.shape == (160, 20)
    scale = (vectors**2).sum(1).mean()
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T / scale, atol=1e-9)


def test_the_diversity_term_is_letters():
    import torch

    book = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    groups = np.array([0, 0, 1, 1, 2, 2])
    found = module._diversity(book, torch.tensor([0, 3]), groups, np.random.default_rng(0))
    expected = []
    for own, other in ((0, 1), (3, 2)):
        rows = book.detach()
        scores = [float(rows[own] @ rows[code]) for code in range(6) if code != own]
        expected.append(np.log(np.exp(scores).sum()) - float(rows[own] @ rows[other]))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_codes_are_those_of_the_trained_encoder_without_torch():
    import torch

    _, vectors = planted()
    trainer = module._Trainer(vectors.astype(np.float32), inputs(vectors))
    trainer.run()
    with torch.no_grad():
        expected = trainer.encoder(torch.tensor(vectors, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(
        module._encode(vectors.astype(np.float32), trainer._arrays()), expected, rtol=1e-4, atol=1e-4
    )


def test_every_policy_gives_codes(log, items):
    for policy in ("next_free", "sinkhorn", "suffix", "allow"):
        _, vectors = planted(per_group=20)
        index = build(vectors, collisions=policy)
        assert index.report["collision_policy"] == policy
        assert len(index.codes) == 80
        assert (len(set(index.codes.values())) == 80) == (
            policy != "allow" or not index.report["collision_rate"]
        )


def test_it_is_built_by_name(log, items):
    settings = IndexSettings(
        text_encoder="words", levels=2, codebook_size=8, rq_vae=RQVAESettings(hidden=(8,), epochs=1)
    )
    assert build_index("rq_vae", items, log.histories(), settings).method == "rq_vae"
