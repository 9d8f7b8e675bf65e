# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading a study
#
# `make sweep` trains six small language models on Shakespeare and Milton: stacks of attention, Mamba and Hyena, and
# hybrids that put attention in different places. This notebook reads what the study left behind and draws its figures.
#
# It opens the folder named by the environment variable `HYBRID_STUDY`, else your own `runs/quickstart`, else
# `results/quickstart`, the small copy of a finished study that the repository keeps.

# %%
# %config InlineBackend.figure_formats = ["png"]
# %matplotlib inline
import os
from pathlib import Path

import polars as pl
from IPython.display import display

import experiments
from experiments import figures
from experiments.report_text import conclusion, warnings
from experiments.results import load

root = Path(experiments.__file__).parents[1]
own, kept = root / "runs" / "quickstart", root / "results" / "quickstart"
results = load(root / os.environ.get("HYBRID_STUDY", own if own.is_dir() else kept))
results.study, results.counts(), f"compared with {results.baseline}"

# %% [markdown]
# ## Two data frames
#
# `results.runs` has a row for each run. Runs of the stage `tune` share one seed and try the learning rates; runs of the
# stage `confirm` repeat the best rate of their arm with other seeds.

# %%
pl.Config.set_tbl_hide_dataframe_shape(True)
results.runs.select(
    "arm", "stage", "seed", "learning_rate", "status", "parameters", "validation_bits_per_byte", "test_bits_per_byte"
).head(8)

# %% [markdown]
# `results.curves` has a row for each line of a run's `metrics.jsonl`, with the columns of its run beside it. Here: how
# validation goes down with the tokens that were seen, a column for each arm, averaged over all its
# runs, those of the rate that was not chosen included.

# %%
validation = results.curves.filter(pl.col("validation_bits_per_byte").is_not_null())
validation.pivot(
    "arm", index="tokens", values="validation_bits_per_byte", aggregate_function="mean", maintain_order=True
).sort("tokens")

# %% [markdown]
# ## The answer
#
# The learning rate of each arm is chosen on the validation split. Scores are of the test split, over seeds, with 95 %
# intervals; differences to the baseline are paired by seed. A verdict holds for the whole table together, and what
# the runs cannot tell is *undecided*.

# %%
table = results.table()
table.select("arm", "pattern", "ratio", "learning_rate", "n", "test", "low", "high", "difference", "p", "verdict")

# %%
print("\n".join(line.replace("**", "") for line in conclusion(results, table)))
print("\nBefore you believe it:")
print("\n".join(f"- {line}" for line in warnings(results, table)))

# %% [markdown]
# Every figure comes with the data that it shows.

# %%
figure, data = figures.verdicts(results)
display(figure)

# %% [markdown]
# ## Share and place of attention

# %%
figure, data = figures.placement(results)
display(figure)

# %%
display(data)

# %% [markdown]
# ## Was the learning rate right?
#
# A best rate at the edge of its grid (a red ring) says that a better one may lie outside.

# %%
figure, data = figures.response(results)
display(figure)

# %% [markdown]
# ## Loss against tokens and against operations
#
# Thin lines are seeds, thick ones their mean.

# %%
figure, data = figures.curves(results, x="tokens")
display(figure)

# %%
figure, data = figures.curves(results, x="flops")
display(figure)

# %% [markdown]
# ## Another question to the same runs
#
# Verdicts against another arm need no new run.

# %%
other = results.against(results.arms[1])
other.table().select("arm", "difference", "difference_low", "difference_high", "verdict")

# %% [markdown]
# ## The same from Weights & Biases
#
# With `WANDB_API_KEY` set, every run is mirrored to W&B under the study's name as its group, with the same names for
# the same things: `arm`, `ratio`, `placement` and the budgets in its config, the final scores in its summary, rows as
# in `metrics.jsonl` in its history.


# %%
def from_wandb(project: str, study: str) -> pl.DataFrame:
    """A row for each run of a study: what it is and its final test score."""
    import wandb

    found = wandb.Api().runs(project, filters={"group": study})
    columns = ("arm", "stage", "seed", "learning_rate", "ratio", "placement", "params")
    return pl.DataFrame(
        [
            {name: run.config.get(name) for name in columns} | {"test": run.summary.get("final/test/bits_per_byte")}
            for run in found
        ],
        infer_schema_length=None,
    )


project = os.environ.get("WANDB_PROJECT", "hybrid")
if os.environ.get("WANDB_API_KEY"):
    runs = from_wandb(project, results.study)
    print(runs.group_by("arm", maintain_order=True).agg(pl.col("test").mean(), pl.len().alias("runs")))
else:
    print("WANDB_API_KEY is not set. With it, this cell asks W&B for the runs of the group")
    print(f"{results.study!r} in the project {project!r} and prints the mean test score of each arm.")
    print("`python -m experiments.sync` uploads runs that were made offline.")
