# %% [markdown]
# # A model that cannot invent items
#
# A small decoder is trained on a shop whose customers follow a rule, and asked in the ways that there are: by beams, exactly, with filters,
# and for its reasons. It runs in some seconds on a processor; with a pretrained model only the first argument of `finetune` is another.

# %%
import random

import genrec
from genrec.data_prep import InteractionLog, ItemCatalog
from genrec.decoding.explain import probability, tree_text

words, things = ["red", "blue", "green", "old", "new", "small", "large", "quiet"], ["lamp", "chair", "radio"]
items = ItemCatalog.from_titles({f"p{n}": f"{words[n % 8]} {things[n // 8]}" for n in range(24)})
draw, events = random.Random(0), []
for customer in range(60):
    item = draw.randrange(24)
    for day in range(12):
        events.append((f"c{customer}", f"p{item}", day))
        item = (13 * item + 5) % 24  # after p20 comes p1, after p1 comes p18, ...
log = InteractionLog.from_rows(events)

# %%
split = genrec.leave_one_out(log)
index = genrec.build_index(
    "rq_kmeans", items, split.train, genrec.IndexSettings(levels=2, codebook_size=6, text_encoder="words")
)
tasks = genrec.TaskSettings(form="packed", max_history=10)
data = genrec.build_dataset(split, items, index, tasks)
run = genrec.finetune(
    "new",
    data,
    index,
    items,
    split,
    "runs/notebook",
    tasks=tasks,
    model=genrec.ModelSettings(new={"width": 32, "layers": 2, "heads": 2}, rows_start="random"),
    settings=genrec.TrainSettings(
        adapter="full",
        epochs=15,
        batch_size=8,
        learning_rate=0.005,
        rows_learning_rate=0.005,
        exclude_history=True,
    ),
)
recommender = genrec.Recommender.from_pretrained(run)

# %% [markdown]
# A score is the log-probability of an item's code. What comes is real, distinct and not bought before, by construction: the search walks
# the trie of all items and never leaves it.

# %%
(found,) = recommender.recommend([["p3", "p20"]], k=5)
for item in found:
    print(f"{item.item_id:4} {item.title:12} {' '.join(item.code)}  p {probability(item.score)}")
assert found[0].item_id == "p1"

# %% [markdown]
# Filters narrow the trie before the search, so five wanted are five found, as long as five are allowed. What remains is weighed anew: an
# item that nobody may get takes no probability with it.

# %%
lamps = [item for item in items.item_ids if items.title(item).endswith("lamp")]
(only_lamps,) = recommender.recommend([["p3", "p20"]], k=5, allow=lamps, exclude=["p1"])
print(", ".join(item.title for item in only_lamps))
assert all(item.title.endswith("lamp") and item.item_id not in ("p1", "p3") for item in only_lamps)

# %% [markdown]
# Beam search may miss: a prefix that looked poor is dropped with all that is below it. `exact=True` goes on until no better item can be left.

# %%
(exact,) = recommender.recommend([["p3", "p20"]], k=5, exact=True)
print(
    "five best by 20 beams and exactly:", [item.item_id for item in found] == [item.item_id for item in exact]
)

# %% [markdown]
# Why these? The prefixes that the search kept, how much of the probability lies below them, and what was dropped.

# %%
why = recommender.explain(["p3", "p20"], k=3, beams=4)
print(tree_text(why.tree))

# %% [markdown]
# Scores of given items, whether or not they would have come, and a history that is not known:

# %%
print([round(score, 3) for score in recommender.score(["p3", "p20"], ["p1", "p18", "p2"])])
try:
    recommender.recommend([["p3", "p999"]])
except genrec.GenrecError as error:
    print(error)

# %% [markdown]
# [Decoding](../decoding.md) has the conventions of scores, grounding of free text, and exports for other engines; [Serving](../serving.md)
# puts this recommender behind HTTP.
