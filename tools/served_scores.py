"""What a divergence record's arms gave the corpus's own tokens, without the alternatives and without where the servers ran: one small JSON file.

python tools/served_scores.py RUN/divergence/width-512.sqlite OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mxfp4_validate.divergence.record import DivergenceStore

IDENTITY = ("version", "model", "moe_backend", "attention_backend", "dtype", "tp_size", "context_length")


def extract(record: Path) -> dict[str, Any]:
    """The corpus and, for every arm, its log-probabilities of each sequence's scored tokens in nat, to seven digits."""
    with DivergenceStore.open(record) as store:
        arms = {}
        for name, arm in store.arms().items():
            rows = store.scores(name)
            if any(row.scores is None for row in rows.values()) or len(rows) != len(store.corpus.sequences):
                raise SystemExit(f"{record}: arm {name} has not scored every sequence")
            chosen = [[float(f"{value:.7g}") for value in rows[place].scores.chosen] for place in sorted(rows)]
            arms[name] = {"role": arm.role, "identity": {key: arm.identity[key] for key in IDENTITY}, "logprobs": chosen}
        sequences = [[s.start, list(s.tokens)] for s in store.corpus.sequences]
        return {"run": store.id, "width": store.width, "corpus_sha256": store.corpus.sha256, "sequences": sequences, "arms": arms}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(extract(Path(sys.argv[1])), separators=(",", ":")) + "\n", encoding="utf-8")
