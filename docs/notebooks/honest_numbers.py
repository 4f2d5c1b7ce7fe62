# %% [markdown]
# # Honest numbers
#
# Any ranker can be judged by genrec, whoever made it. This notebook judges three simple ones on MovieLens-100K with all films as candidates,
# looks at how sure a difference is, and shows how a popular shortcut, a hundred sampled candidates, changes the picture.

# %%
import numpy as np

import genrec
from genrec.evaluation.baselines import TrainingLog, ease, item_knn, popularity

log, items = genrec.load_dataset("movielens-100k")
split = genrec.leave_one_out(log)  # each user's last film is the test, the one before validation
judge = genrec.Judge(split, items, genrec.EvaluateSettings(), on="test")
protocol = judge.protocol()
print(f"{protocol['num_users']} users, candidates: {protocol['candidates']}")

# %% [markdown]
# A ranker is a list of items for each row, best first. These score all films with a line each; yours may come from anywhere, also as a
# file: `genrec evaluate --rankings mine.parquet`.

# %%
training = TrainingLog.of(split, items.item_ids)
rankers = {
    "popularity": popularity(training, 0),
    "item-KNN": item_knn(training, 0, weighting="bm25", neighbours=100, last=10),
    "EASE": ease(training, 0, regularisation=500.0),
}
values = {}
for name, scorer in rankers.items():
    measured, values[name] = judge.measure(name, judge.rank(scorer))
    low, high = measured["intervals"]["NDCG@10"]
    print(
        f"{name:11} HR@10 {measured['metrics']['HR@10']:.4f}   NDCG@10 {measured['metrics']['NDCG@10']:.4f} [{low:.4f}, {high:.4f}]"
    )

# %% [markdown]
# The settings above are guesses. Baselines that are not tuned are no baselines: `evaluate.baselines` searches theirs on validation items, and
# says what was tried.
#
# Is item-KNN better than EASE, or was it lucky with these users? Each user has both values, so the difference is tested user by user: under
# the hypothesis that the two are alike, its sign may be flipped.

# %%
difference = values["item-KNN"]["NDCG@10"] - values["EASE"]["NDCG@10"]
signs = np.random.default_rng(0).choice([-1, 1], (10_000, len(difference)))
as_large = (np.abs((signs * difference).mean(1)) >= abs(difference.mean())).mean()
print(f"difference {difference.mean():+.4f}, p {as_large:.4f} over {len(difference)} users")

# %% [markdown]
# ## What sampling does
#
# With the target hidden among a hundred sampled films instead of all, every number rises, and it means something else: an easier task,
# where only the coarse order counts. Such figures can turn the order of models around (Krichene and Rendle, KDD 2020), so genrec ranks
# all items unless asked, and marks every table where it was.

# %%
sampled = genrec.Judge(split, items, genrec.EvaluateSettings(candidates=100), on="test")
for name, scorer in rankers.items():
    everything = values[name]["HR@10"].mean()
    hundred = sampled.measure(name, sampled.rank(scorer))[0]["metrics"]["HR@10"]
    print(
        f"{name:11} HR@10 among all {everything:.4f}, among a hundred {hundred:.4f}: {hundred / everything:.1f} times"
    )

# %% [markdown]
# [Evaluation](../evaluation.md) has the protocol, the metrics with their sources, and what else is measured: coverage, long tail, slices,
# propensities.
