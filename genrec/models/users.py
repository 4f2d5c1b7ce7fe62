"""Vectors of users, from which personal adapters are made: sources that know no target, kept beside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from genrec.core.errors import DataError, RunError
from genrec.core.files import atomic_path, read_json, write_json
from genrec.data_prep import ItemId, Split, UserId
from genrec.indexing.rq_kmeans import assign, quantize
from genrec.models.sequence import (
    SequenceModel,
    load_sequence_model,
    save_sequence_model,
    sequence_states,
)

ABOUT, ARRAYS, ENCODER, TABLE = "users.json", "users.safetensors", "encoder", "vectors.parquet"


class UserVectors:
    """What is known of a user, as a vector: of the user alone, never of an item that is asked for.

    - ``sasrec``, ``gru4rec``: the state of a sequence recommender after the history. Whoever has a history has a vector,
      users that training never saw too.
    - ``codes``: that state's residual k-means codes, each level's as a one-hot: users of one code have one adapter.
    - ``file``: vectors by user id, from elsewhere.

    Cold users: of a user without any item that the recommender knows, and of one that the file lacks, nothing is
    known. They have the mean vector of the training users.

    Attributes:
        source: Which of these.
        size: Width of a vector.
        mean: ``(size,)`` of the training users' vectors.

    Args:
        source: Which.
        mean: The mean.
        encoder: The sequence recommender of the first three.
        item_ids: Its items, in its order.
        codebooks: ``codes``: each level's centroids ``(codes, width)``.
        table: ``file``: ``{user: vector}``.
    """

    def __init__(
        self,
        source: str,
        mean: np.ndarray,
        *,
        encoder: SequenceModel | None = None,
        item_ids: Sequence[ItemId] = (),
        codebooks: Sequence[np.ndarray] = (),
        table: dict[UserId, np.ndarray] | None = None,
    ) -> None:
        self.source, self.mean, self.size = source, np.asarray(mean, np.float32), len(mean)
        self.encoder, self.item_ids, self.codebooks, self.table = encoder, list(item_ids), codebooks, table
        self._position = {item: row for row, item in enumerate(self.item_ids)}

    @classmethod
    def of_model(
        cls,
        encoder: SequenceModel,
        item_ids: Sequence[ItemId],
        split: Split,
        levels: int = 0,
        codes: int = 0,
        seed: int = 0,
    ) -> UserVectors:
        """Returns the vectors that a sequence recommender's states are, or their codes.

        Args:
            encoder: Trained on the training histories.
            item_ids: Its items.
            split: Whose training histories the mean and the codes are of.
            levels: Of codes; 0 takes the states themselves.
            codes: Of a level.
            seed: Of their k-means.
        """
        position = {item: row for row, item in enumerate(item_ids)}
        histories = [[position[item] for item in each] for each in split.train.values()]
        states = sequence_states(encoder, histories)
        if not levels:
            return cls(encoder.kind, states.mean(0), encoder=encoder, item_ids=item_ids)
        numbers, books = quantize(states, levels, codes, seed)
        mean = np.concatenate(
            [np.bincount(numbers[:, n], minlength=len(book)) / len(numbers) for n, book in enumerate(books)]
        )
        return cls("codes", mean, encoder=encoder, item_ids=item_ids, codebooks=books)

    @classmethod
    def of_file(cls, path: str | Path, split: Split) -> UserVectors:
        """Returns the vectors in a Parquet file with the columns ``user_id`` and ``vector`` (lists of one length).

        They must come from training interactions alone, which nobody can see from the file.

        Raises:
            DataError: If there is no such file or column, a vector is not finite or of another length, or no training
                user has one.
        """
        found = read_vectors(path)
        known = [found[user] for user in split.train if user in found]
        if not known:
            raise DataError(
                f"{path} has vectors of {len(found):,} users, first {next(iter(found))!r}, and none of the {len(split.train):,} "
                f"training users, first {next(iter(split.train))!r}. Its user_id must be those of the log."
            )
        return cls("file", np.mean(known, 0), table=found)

    def of(
        self, histories: Sequence[Sequence[ItemId]], user_ids: Sequence[UserId | None] | None = None
    ) -> np.ndarray:
        """Returns float32 vectors ``(histories, size)``.

        Args:
            histories: Items each user took, oldest first; those that are unknown are passed over.
            user_ids: Whose they are, which ``file`` needs; None is nobody in particular.

        Raises:
            DataError: If ``file`` is asked without users.
        """
        found = np.repeat(self.mean[None], len(histories), 0)
        if self.table is not None:
            if user_ids is None:
                raise DataError(
                    "The vectors of this model's users came from a file, by user: give user_ids beside histories. A user that "
                    "it lacks, or None, has the mean vector."
                )
            for row, user in enumerate(user_ids):
                if user is not None and user in self.table:
                    found[row] = self.table[user]
            return found
        assert self.encoder is not None
        known = [[self._position[item] for item in each if item in self._position] for each in histories]
        rows = [row for row, each in enumerate(known) if each]
        if rows:
            states = sequence_states(self.encoder, [known[row] for row in rows])
            found[rows] = self._one_hot(assign(states, self.codebooks)) if len(self.codebooks) else states
        return found

    def _one_hot(self, numbers: np.ndarray) -> np.ndarray:
        edges = np.cumsum([0, *map(len, self.codebooks)])
        found = np.zeros((len(numbers), self.size), np.float32)
        np.put_along_axis(found, numbers + edges[:-1], 1.0, 1)
        return found

    def save(self, folder: str | Path) -> None:
        """Writes everything, whole or not at all; vectors of a file, which are data of users, lie in a file of their own."""
        with atomic_path(folder) as part:
            part.mkdir()
            arrays = {"mean": self.mean}
            arrays |= {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
            save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()}, part / ARRAYS)
            if self.encoder is not None:
                save_sequence_model(self.encoder, self.item_ids, part / ENCODER)
            if self.table is not None:
                columns = {
                    "user_id": list(self.table),
                    "vector": [row.tolist() for row in self.table.values()],
                }
                pa_parquet.write_table(pa.table(columns), part / TABLE)
            write_json(
                part / ABOUT, {"source": self.source, "size": self.size, "levels": len(self.codebooks)}
            )

    @classmethod
    def load(cls, folder: str | Path) -> UserVectors:
        """Returns what ``save`` wrote; where it lacks a file's vectors, as on the Hub, every user is a cold one.

        Raises:
            RunError: If it is incomplete or broken.
        """
        folder = Path(folder)
        about = read_json(folder / ABOUT)
        try:
            arrays = load_file(folder / ARRAYS)
        except (OSError, SafetensorError) as error:
            raise RunError(f"The vectors of users in {folder} are incomplete or broken: {error}") from error
        books = [arrays[f"codebook.{level}"] for level in range(about["levels"])]
        if about["source"] == "file":
            table: dict[UserId, np.ndarray] = {}
            if (folder / TABLE).exists():
                stored = pa_parquet.read_table(folder / TABLE)
                rows = np.array(stored["vector"].to_pylist(), np.float32)
                table = dict(zip(stored["user_id"].to_pylist(), rows, strict=True))
            return cls("file", arrays["mean"], table=table)
        item_ids = read_json(folder / ENCODER / "model.json")["item_ids"]
        encoder = load_sequence_model(folder / ENCODER, item_ids)
        return cls(about["source"], arrays["mean"], encoder=encoder, item_ids=item_ids, codebooks=books)


def read_vectors(path: str | Path) -> dict[UserId, np.ndarray]:
    """Returns ``{user: vector}`` of a Parquet file with the columns ``user_id`` and ``vector``.

    Raises:
        DataError: If there is no such file or column, or a vector is not finite or of another length.
    """
    try:
        table = pa_parquet.read_table(path, columns=["user_id", "vector"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{str(path)!r} must be a Parquet file with the columns user_id and vector: {error}"
        ) from error
    users, rows = table["user_id"].to_pylist(), table["vector"].to_pylist()
    lengths = {len(row or ()) for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(
            f"{path}: vectors of users have the lengths {sorted(lengths)}; all must have one length, at least 1."
        )
    values = np.array(rows, np.float32)
    if not np.isfinite(values).all():
        user = users[int(np.flatnonzero(~np.isfinite(values).all(1))[0])]
        raise DataError(f"{path}: the vector of user {user!r} is not finite.")
    return {str(user): row for user, row in zip(users, values, strict=True)}
