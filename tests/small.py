"""A recommender of a tiny random model, which nothing was taught."""

import torch

from genrec.data_prep import ItemCatalog
from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.serving import Recommender
from genrec.tasks import Renderer


def small_recommender(
    folder, run_dir, codes, form="packed", over="level", shared=False, whole_words=False, titles=None
):
    """The model in a folder with an index of these codes; titles hold what breaks lines and quotes."""
    index = ItemIndex("mine", codes, shared=shared)
    lm, tokenizer = load_backbone(folder, dtype="float32")
    rows = torch.randn(len(index.tokens), 64, generator=torch.Generator().manual_seed(2)) * 0.5
    model = RecommenderModel.create(
        lm,
        tokenizer,
        index,
        rows,
        name=folder,
        layers=None,
        softmax_over=over,
        whole_words=whole_words,
    )
    renderer = Renderer(tokenizer, index, form, 20, text_to_text=model.is_encoder_decoder)
    items = ItemCatalog.from_titles(titles or {item: f"Thing {item} \u2028 “{item}”" for item in codes})
    return Recommender(ConstrainedDecoder(model.eval(), renderer), items, run_dir)
