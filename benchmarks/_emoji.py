"""Emoji across two styles: every map, and the re-ranking of a matcher that few pairs have taught."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from benchmarks._retrieval import fitted
from lit_methods.callbacks import KnowledgeRerank
from lit_methods.datamodules import EmojiDataModule
from lit_methods.image_text import Centring, build_knowledge
from lit_methods.image_text.saved_scores import SavedScores

PAIRS = (50, 200, 800)


def weak_scores(data: EmojiDataModule, pairs: int, split: Any) -> np.ndarray[Any, Any]:
    """Scores `(I, T)` of ridge regression from whole pictures to the letters of their captions, taught by few pairs."""
    train, held = data.sets["train"], data.sets[split]
    taught = np.flatnonzero(train.image.numpy() < pairs)
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    targets = words.fit_transform([train.captions[row] for row in taught])
    pictures = [one.regions.read(range(len(one.regions))).regions[:, 0].numpy() for one in (train, held)]
    mean, scale = pictures[0][:pairs].mean(axis=0), pictures[0][:pairs].std()
    inputs, queries = ((values - mean) / scale for values in pictures)
    taught_by = train.image.numpy()[taught]
    model = Ridge(alpha=100.0).fit(inputs[taught_by], targets.toarray())
    predicted = model.predict(queries) - model.intercept_
    predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
    return np.asarray(predicted @ words.transform(held.captions).toarray().T, np.float32)


def reranked(seed: int, pairs: int, centred: bool) -> dict[str, float]:
    """Recalls before and after, through the callback; the weights are searched on the validation set."""
    data = EmojiDataModule(seed=seed)
    data.setup()
    knowledge = build_knowledge(data.knowledge_dataloader())
    transform = fitted(Centring(knowledge.feature_size), data, knowledge) if centred else None
    with tempfile.TemporaryDirectory() as folder:
        files = {split: Path(folder) / f"{split}.npy" for split in ("validation", "test")}
        for split, path in files.items():
            np.save(path, weak_scores(data, pairs, split))
        callback = KnowledgeRerank(knowledge=knowledge, alpha=None, alphas=_ALPHAS, transform=transform)
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = SavedScores(files["test"], files["validation"])
        trainer.validate(module, datamodule=data, verbose=False)
        found = trainer.test(module, datamodule=data, verbose=False)
    return {name.removeprefix("test/"): value for one in found for name, value in one.items()}


_ALPHAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


def rerankings(seeds: Sequence[int], centred: bool = True) -> dict[int, list[dict[str, float]]]:
    """By number of pairs, one result for each seed."""
    return {pairs: [reranked(seed, pairs, centred) for seed in seeds] for pairs in PAIRS}
