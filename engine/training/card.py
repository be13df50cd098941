"""From a run to what ships: the weights, a model card that says where they came from, and the run's curves.

Every figure on the card is read from the run's log, the checkpoint's header or a result of `hope eval`.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import ModelConfig
from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.model.weights import checkpoint_notes, fingerprint, load_checkpoint, save_checkpoint
from engine.training.beginning import history
from engine.training.blend import Blend, blend
from engine.training.trainer import LOG_FILE

CARD_FILE = "MODEL_CARD.md"
CURVES_FILE = "curves.svg"

SOURCES = """| source | used for | licence |
|---|---|---|
| memory dialogues (`engine/training/dialogue.py`) | facts and questions; the tokenizer | this project's, Apache-2.0 |
| small talk (`engine/training/facts/small_talk*.toml`) | other talk | this project's, Apache-2.0 |
| self_dialogue corpus (jfainberg) | other talk; the tokenizer | BSD-3-Clause |
| chatterbot corpus (gunthercox) | other talk; the tokenizer | BSD-3-Clause |
| Taskmaster-4 (google-research-datasets) | other talk; the tokenizer | CC BY 4.0 |
| TinyStories (2 MB sample) | paragraphs to read; the tokenizer | CDLA-Sharing-1.0 |
| fairy tales of Grimm, Andersen and Wilde (Project Gutenberg) | paragraphs to read; the tokenizer | \
public domain |"""


def export(run: Path, folder: Path, recall: Sequence[Path], between: Blend | None = None) -> None:
    """Writes the run's model, tokenizer, card and curves into `folder`.

    Args:
        run: a run's folder.
        folder: where the checkpoint goes; what it held before is replaced.
        recall: JSON results of `hope eval recall` on this model.
        between: ship weights between another checkpoint's and the run's; the command is added to the run's own.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest("the curves need matplotlib: pip install 'hope-server[plots]'")
    model, tokenizer = load_checkpoint(run)
    notes, runs = checkpoint_notes(run), history(run)
    if between is not None:
        blend(model, between.other, between.share)
        runs = (*runs[:-1], runs[-1] | {"command": f"{notes['command']} && {between.command}"})
    save_checkpoint(folder, model, tokenizer, notes | {"command": runs[-1]["command"]})
    log = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    results = [json.loads(path.read_text()) for path in recall]
    (folder / CARD_FILE).write_text(_card(model, runs, log, results, blended=between is not None))
    draw_curves(log, folder / CURVES_FILE)


def draw_curves(log: Sequence[dict[str, float]], path: Path) -> None:
    """Loss and recall over tokens as one picture (needs the extra `plots`)."""
    import matplotlib

    matplotlib.use("Agg")
    # The same picture from the same log, byte for byte.
    matplotlib.rcParams["svg.hashsalt"] = "hope"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    window = 25
    means = [
        (log[at]["tokens"], statistics.mean(r["loss"] for r in log[at : at + window]))
        for at in range(0, len(log), window)
    ]
    left.plot([tokens / 1e6 for tokens, _ in means], [loss for _, loss in means])
    left.set(xlabel="million tokens", ylabel="loss, nats", title="training loss (mean of 25 steps)", yscale="log")
    probes = [row for row in log if "recall" in row]
    for name, label in (("recall", "whole values"), ("recall_tokens", "tokens of values")):
        right.plot([row["tokens"] / 1e6 for row in probes], [row[name] for row in probes], label=label)
    right.set(xlabel="million tokens", ylabel="recall", title="held-out values, teacher-forced", ylim=(0, 1))
    right.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _card(
    model: Hope,
    runs: Sequence[dict[str, str]],
    log: Sequence[dict[str, float]],
    results: Sequence[dict[str, Any]],
    *,
    blended: bool,
) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    probes = [row for row in log if "recall" in row]
    loss = statistics.mean(row["loss"] for row in log[-100:])
    tokens, steps = (sum(int(run[name]) for run in runs) for name in ("tokens_seen", "steps"))
    tokens_right = probes[-1]["recall_tokens"]
    before = ", before blending" if blended else ""
    commands = "; then ".join(f"`{run['command']}`" for run in runs)
    return f"""# Model card: the reference checkpoint

A Hope model of {parameters / 1e6:.2f} M parameters that was trained to remember what it is told. It holds short,
simple talk; it knows next to nothing else and must not be relied on for facts of the world.

| | |
|---|---|
| shape | {_shape(model.config)} |
| fingerprint | `{fingerprint(model)}` |
| tokens seen | {tokens:,} in {steps:,} steps |
| command | {commands} |
| loss, last 100 steps{before} | {loss:.3f} nats (replies and a share of the messages' tokens, weighted) |
| probe, last{before} | {probes[-1]["recall"]:.1%} of held-out values whole, {tokens_right:.1%} of their tokens |

![loss and recall over tokens]({CURVES_FILE})

## Recall

Five facts a session, each followed by other talk, through the whole engine and store, temperature 0; asked after so
many more turns. The value, never in training, must appear in the reply. Mean and standard deviation over seeds;
`hope eval recall` with the options named reproduces them.

{_recall_table(results)}

*Training*: relations and wordings as in training. *Open*: relations of words that training never saw, in its
wordings. *Everyday*: sentences as users write them (`engine/evaluation/everyday.toml`), none of them in training.
*Paraphrases* (`engine/evaluation/paraphrases.toml`): the same, and asked for in other words than they were told in.
*Held-out*: relations kept from training; wordings kept from training, most of them paraphrases that share no word.

## Data

{SOURCES}

Twenty topics and more, a fifth of the words of open relations, the last two ways to tell and to ask of every relation,
and a tenth of all values (by hash) never occur in training. WikiText, bAbI, CLINC150 and Kalamang were not trained on.

## Limits

English only. Replies are those of a small model: other talk is often beside the point. It finds a fact by the words
of the question: asked in quite other words, it says that it does not know, or names another fact. What was told can
be read back from a session's memory: treat memories as personal data.
`docs/RESULTS.md` holds the tables of this project: memory over long conversations, and Hope beside other models.
"""


def _shape(config: ModelConfig) -> str:
    levels = ", ".join(f"{level.name} {level.hidden}" for level in config.levels)
    return (
        f"{config.num_layers} layers, width {config.width}, {config.num_heads} heads, vocabulary {config.vocab_size}, "
        f"memory hidden {config.memory_hidden}, chunks of {config.chunk_memory} and {config.chunk_projections} "
        f"tokens, CMS hidden: {levels}"
    )


def _recall_table(results: Sequence[dict[str, Any]]) -> str:
    """One row a result; the columns are those of the first."""
    if not results:
        return "Not measured."
    gaps = [str(row["turns"]) for row in results[0]["rows"]]
    lines = [f"| relations, wordings | {' | '.join(f'after {gap}' for gap in gaps)} |", "|---" * (len(gaps) + 1) + "|"]
    for result in results:
        off = ", ".join(level for level, rate in result["rates"].items() if not rate)
        title = f"{result['relations']}, {result['phrases']}" + (f", {off} off" if off else "")
        cells = " | ".join(f"{row['recall']:.1%} ± {row['spread']:.1%}" for row in result["rows"])
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)
