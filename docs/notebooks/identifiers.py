# %% [markdown]
# # How items get their names
#
# A generative recommender writes items token by token, so what an item is called decides what it is confused with. This notebook names the
# films of MovieLens-100K in four ways, looks at what the names share, and adds a film that nobody has seen yet. No model is
# trained; it runs in some seconds on a processor.

# %%
import genrec
from genrec.data_prep import ItemCatalog

log, items = genrec.load_dataset("movielens-100k")
split = genrec.leave_one_out(log)
print(f"{len(items):,} films, {sum(map(len, split.train.values())):,} training interactions")

# %% [markdown]
# An index is made from the catalogue and the *training* part of the log alone: one that saw the held-out films would carry the answer into
# their names.

# %%
settings = genrec.IndexSettings(levels=3, codebook_size=32)
schemes = {
    name: genrec.build_index(name, items, split.train, settings)
    for name in ("random", "sequential", "collaborative", "rq_kmeans")
}
for name, index in schemes.items():
    print(f"{name:14} {index.num_levels} levels   Star Wars is {' '.join(index.code('50'))}")

# %% [markdown]
# Who shares the first token with *Star Wars*? At random, anybody. By `collaborative`, what the same people watched. By `rq_kmeans`, what
# is described in like words.


# %%
def relatives(index, item, most=5):
    """Returns titles of items whose code begins as this one's."""
    first = index.code(item)[0]
    return [
        items.title(other) for other in index.item_ids if other != item and index.code(other)[0] == first
    ][:most]


for name, index in schemes.items():
    print(f"{name:14} {'; '.join(relatives(index, '50')) or 'nobody'}")

# %% [markdown]
# No two items share a code, unless that was asked for, and every code belongs to an item: that is what the trie holds, which decoding walks.
# From a prefix it knows the tokens that lead on to items that exist.

# %%
index = schemes["rq_kmeans"]
codes = [index.code(item) for item in index.item_ids]
assert len(set(codes)) == len(items)

ids = {token: number for number, token in enumerate(sorted({token for code in codes for token in code}))}
trie = index.trie(ids)
first, *_ = index.code("50")
below = trie.find([ids[first]])
print(
    f"{trie.num_items:,} items, {trie.num_nodes:,} prefixes; behind {first} come {len(trie.children(below))} tokens"
)

# %% [markdown]
# A film that comes out tomorrow is named from its title with the codebooks as they are: nothing is trained, no other name changes.

# %%
longer = index.extend(ItemCatalog.from_titles({"new": "Star Wars: The Next Generation of Empires (1999)"}))
print("the new film is", " ".join(longer.code("new")), "beside", "; ".join(relatives(longer, "new", 3)))
assert all(longer.code(item) == index.code(item) for item in index.item_ids)

# %% [markdown]
# Which scheme is best is a question to the data, and the answer is measured, not argued: [Item identifiers](../indexing.md) has a table with
# models trained on each. `genrec index RECIPE --report` draws the code tree and a map of the items.
