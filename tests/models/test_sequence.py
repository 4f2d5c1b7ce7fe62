import numpy as np
import pytest
import torch

from genrec.data_prep import leave_one_out
from genrec.models.sequence import MODELS, sequence_scores, train_sequence
from genrec.models.settings import GRU4RecSettings, SASRecSettings


@pytest.mark.parametrize("kind", MODELS)
def test_later_items_change_no_earlier_state_and_padding_nothing(kind):
    model_class, settings_class = MODELS[kind]
    torch.manual_seed(0)
    model = model_class(9, settings_class(width=8, dropout=0.0)).eval()
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 8, 9]])
    assert torch.allclose(model(one)[:, :2], model(other)[:, :2], atol=1e-6)
    together = sequence_scores(model, [[1, 2], [1, 2, 3, 4], []])
    assert together[0] == pytest.approx(sequence_scores(model, [[1, 2]])[0], abs=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("cut_after", [1, 2])
@pytest.mark.parametrize(
    "settings_", [SASRecSettings(epochs=15, width=16), GRU4RecSettings(epochs=15, width=16)]
)
def test_a_training_that_was_cut_ends_with_the_same_weights(log, items, tmp_path, settings_, cut_after):
    split = leave_one_out(log)
    whole, about = train_sequence(split, items.item_ids, settings_)
    shown = []

    class CutError(Exception):
        pass

    def cut(*_):
        shown.append(1)
        if len(shown) > cut_after:
            raise CutError

    state = tmp_path / "state.pt"
    with pytest.MonkeyPatch.context() as patch:
        # Cut while the next validation is announced: after its checkpoint of before, in the middle of an epoch.
        patch.setattr("genrec.models.sequence._validation_ndcg", _counted(cut))
        with pytest.raises(CutError):
            train_sequence(split, items.item_ids, settings_, state)
    assert state.exists()
    torch.rand(5), np.random.default_rng().random()
    again, about_again = train_sequence(split, items.item_ids, settings_, state)
    assert about_again["curve"] == about["curve"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def _counted(cut):
    from genrec.models import sequence

    real = sequence._validation_ndcg

    def value(*arguments):
        cut()
        return real(*arguments)

    return value


@pytest.mark.model
def test_a_state_of_another_training_or_a_broken_one_is_not_used(log, items, tmp_path, capsys):
    split = leave_one_out(log)
    state = tmp_path / "state.pt"
    train_sequence(split, items.item_ids, SASRecSettings(epochs=5, width=8), state)
    fresh, _ = train_sequence(split, items.item_ids, SASRecSettings(epochs=5, width=8, seed=1))
    other, _ = train_sequence(split, items.item_ids, SASRecSettings(epochs=5, width=8, seed=1), state)
    assert "goes on" not in capsys.readouterr().err
    state.write_bytes(b"PK broken")
    broken, _ = train_sequence(split, items.item_ids, SASRecSettings(epochs=5, width=8, seed=1), state)
    assert "cannot be read" in capsys.readouterr().err
    assert torch.equal(fresh.items.weight, other.items.weight)
    assert torch.equal(fresh.items.weight, broken.items.weight)
