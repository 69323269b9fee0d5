"""`tessera tokenizer`: tokenizers made, used, looked at and carried to other libraries and back."""

import glob
import inspect
import io
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tessera.cli import vocabulary
from tessera.cli.console import console, duration, size
from tessera.cli.tokens import (
    SOURCES_HELP,
    TOKENIZER_HELP,
    Activity,
    colored,
    open_tokenizer,
    refuse_existing,
)
from tessera.errors import InputError, SettingError

if TYPE_CHECKING:
    import numpy as np

    from tessera.tokenizers.contract import Tokenizer

app = typer.Typer(help="Tokenizers: train, use, look at, compare, prune, bring in and out.", no_args_is_help=True)
app.command("stats")(vocabulary.stats)
app.command("compare")(vocabulary.compare)
app.command("prune")(vocabulary.prune)

PLAIN = (".txt", ".md", ".py")
MEASURED_BYTES = 10_000_000  # of the text, for the bytes per token that training ends with
READ_CHARACTERS = 2**20
DECODED_AT_ONCE = 2**14
MOST_SHOWN = 40

Named = Annotated[str, typer.Argument(help=TOKENIZER_HELP)]
Chosen = Annotated[str, typer.Option("-t", "--tokenizer", help=TOKENIZER_HELP)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def train(
    inputs: Annotated[list[str], typer.Argument(help=f"{SOURCES_HELP} And a.b=c settings of the kind.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write.")],
    kind: Annotated[str, typer.Option(help="bpe, unigram, word, char, symbols, bins, ...")] = "bpe",
    vocab_size: Annotated[int | None, typer.Option(help="Tokens in all, special ones among them.")] = None,
    pattern: Annotated[str | None, typer.Option(help="bpe: gpt2, gpt4, o200k, ... or a regular expression.")] = None,
    ties: Annotated[str | None, typer.Option(help="bpe, of equal pairs: first or lexicographic.")] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token beside <|endoftext|>; repeat it.")] = None,
    counts: Annotated[
        Path | None, typer.Option(help="bpe: keep what was counted here, and go on from it after a stop.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Learn a tokenizer from text. bpe reads plain files in parts; memory does not grow with them.

    [bold]tessera tokenizer train my.txt --vocab-size 8000 --out tokenizer.json[/bold]
    """
    from tessera.cli.train import split_inputs
    from tessera.config import override
    from tessera.data.documents import read_documents
    from tessera.tokenizers import TOKENIZERS, RegexBpe, check_tokenizer
    from tessera.tokenizers.files import read_text
    from tessera.tokenizers.specials import END

    sources, settings = split_inputs(inputs)
    given = {
        "vocab_size": vocab_size,
        "pattern": pattern,
        "ties": ties,
        "specials": [END, *special] if special else None,
    }
    named = {"name": kind, **{name: value for name, value in given.items() if value is not None}}
    spec = check_tokenizer(override(named, settings))
    refuse_existing([out], force=force)
    plain = _read_in_parts(sources, spec.name, spec.settings, counts)
    documents = read_documents(sources)
    shown = console(quiet=as_json)
    start = time.perf_counter()
    more = dict(spec.settings)
    with Activity(shown) as activity:
        tokenizer: Tokenizer
        if plain:
            more |= {"reading": activity.reading, "progress": activity.count}
            tokenizer = RegexBpe.train_files(sources, counts=counts, **more)
        else:
            if "progress" in inspect.signature(TOKENIZERS[spec.name].train).parameters:
                more["progress"] = activity.count
            texts = (text for _, text in activity.read(documents, "read"))
            tokenizer = TOKENIZERS[spec.name].train(texts, **more)
    seconds = time.perf_counter() - start
    _save(tokenizer, out)
    measured = (text for path in sources for text in read_text(path)) if plain else (found.text for found in documents)
    content = {
        "path": str(out),
        "kind": tokenizer.kind,
        "n_vocab": tokenizer.n_vocab,
        "bytes_per_token": _bytes_per_token(tokenizer, measured),
        "seconds": seconds,
        "fingerprint": tokenizer.fingerprint,
    }
    if as_json:
        print(json.dumps(content))
        return
    shown.print(f"  {tokenizer.kind} with {tokenizer.n_vocab:,} tokens in {duration(seconds)}")
    shown.print(f"  {content['bytes_per_token']:.3f} bytes per token on the text (at most its first 10 MB)")
    shown.print(
        f"  {escape(str(out))}, {size(out.stat().st_size)}\n\nNext:\n  tessera tokenizer show {escape(str(out))}"
    )


def _read_in_parts(sources: list[str], kind: str, settings: Mapping[str, Any], counts: Path | None) -> bool:
    """Whether the sources are plain files that byte-pair encoding can count part by part."""
    plain = all(Path(source).suffix in PLAIN and Path(source).is_file() for source in sources)
    if kind == "bpe" and plain and "normalize" not in settings:
        return True
    if counts is not None:
        raise SettingError("counts", str(counts), f"only with kind bpe and files in {', '.join(PLAIN)}")
    return False


def _bytes_per_token(tokenizer: "Tokenizer", texts: Iterable[str]) -> float:
    from tessera.tokenizers.vocabulary.usage import Usage

    usage = Usage()
    for whole in texts:
        text = whole[:MEASURED_BYTES]
        usage.add(text, tokenizer.encode_array(text, specials="all"))
        if usage.n_bytes >= MEASURED_BYTES:
            break
    return usage.bytes_per_token


def _save(tokenizer: "Tokenizer", out: Path) -> None:
    from tessera.store.files import make_folders

    make_folders(out.parent)
    tokenizer.save(out)


@app.command()
def encode(
    tokenizer: Chosen,
    text: Annotated[
        str | None, typer.Argument(help="The text; standard input if neither it nor --file is given.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file, read in memory that does not grow with it.")] = None,
    specials: Annotated[
        str, typer.Option(help="Special tokens spelled out in the text: none (plain text), all (their ids), raise.")
    ] = "raise",
    out: Annotated[Path | None, typer.Option("--out", help="Write the ids to a .npy or a .bin file.")] = None,
    force: Force = False,
) -> None:
    """Text to ids; on a terminal the text is shown in its tokens, too."""
    if specials not in ("none", "all", "raise"):
        raise SettingError("--specials", specials, "none, all or raise")
    if text is not None and file is not None:
        raise InputError("TEXT or --file, not both")
    if out is not None:
        _check_ids_file(out)
        refuse_existing([out], force=force)
    chosen = open_tokenizer(tokenizer).tokenizer
    if file is not None:
        arrays = chosen.encode_file(file, specials=specials)
    elif text is not None:
        arrays = iter([chosen.encode_array(text, specials=specials)])
    else:
        arrays = chosen.encode_parts(_standard_input(), specials=specials)
    if out is not None:
        n_ids = _write_ids(out, arrays, chosen.dtype)
        console().print(f"{n_ids:,} ids ({chosen.dtype.__name__}) in {escape(str(out))}")
        return
    shown = console()
    ids = _print_ids(arrays, keep=shown.is_terminal and file is None)
    if ids:
        from tessera.tokenizers.vocabulary.segments import segments

        shown.print(colored(segments(chosen, ids), chosen.separator.decode()))


def _standard_input() -> Iterator[str]:
    try:
        while part := sys.stdin.read(READ_CHARACTERS):
            yield part
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error.reason})") from None


def _print_ids(arrays: Iterable["np.ndarray"], *, keep: bool) -> list[int]:
    """One line, as the ids come; returns them if they are to be shown."""
    kept: list[int] = []
    between = ""
    for array in arrays:
        ids = array.tolist()
        if ids:
            sys.stdout.write(between + " ".join(map(str, ids)))
            between = " "
        if keep:
            kept += ids
    sys.stdout.write("\n")
    return kept


def _check_ids_file(path: Path) -> None:
    if path.suffix not in (".npy", ".bin"):
        raise SettingError("--out", str(path), "a .npy file, or a .bin file with nothing but the ids")


def _write_ids(path: Path, arrays: Iterable["np.ndarray"], dtype: type) -> int:
    """The ids as they come: a NumPy file, whose header is completed at the end, or plain little-endian numbers."""
    import numpy as np

    from tessera.data.durable import DurableFile
    from tessera.store.files import make_folders

    kind = np.dtype(dtype).newbyteorder("<")

    def header(n_ids: int) -> bytes:
        content = io.BytesIO()
        described = {"descr": kind.str, "fortran_order": False, "shape": (n_ids,)}
        np.lib.format.write_array_header_1_0(content, described)
        return content.getvalue()

    make_folders(path.parent)
    n_ids = 0
    with DurableFile(path) as file:
        if path.suffix == ".npy":
            file.write(header(0))
        for array in arrays:
            file.write(array.astype(kind, copy=False).tobytes())
            n_ids += len(array)
        if path.suffix == ".npy":
            assert len(header(n_ids)) == len(header(0)), "NumPy leaves room for the number to grow"
            file.write_at_start(header(n_ids))
    return n_ids


@app.command()
def decode(
    tokenizer: Chosen,
    ids: Annotated[
        list[str] | None, typer.Argument(help="The ids; standard input if there is no --file either.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Ids: a .npy or .bin file as encode writes, or a text.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="U+FFFD for an id that no token has, not an error.")
    ] = False,
) -> None:
    """Ids to text, as it was: not even a line end is added but on a terminal."""
    if ids and file is not None:
        raise InputError("IDS or --file, not both")
    chosen = open_tokenizer(tokenizer).tokenizer
    stream = chosen.stream(unknown="replace" if replace else "raise")
    last = ""
    for some in _read_ids(ids, file, chosen):
        text = "".join(map(stream.push, some))
        sys.stdout.write(text)
        last = text[-1:] or last
    rest = stream.finish()
    sys.stdout.write(rest)
    if sys.stdout.isatty() and (rest or last) != "\n":
        sys.stdout.write("\n")


def _read_ids(words: list[str] | None, file: Path | None, tokenizer: "Tokenizer") -> Iterator[list[int]]:
    if file is not None and file.suffix in (".npy", ".bin"):
        array = _ids_array(file, tokenizer)
        for start in range(0, len(array), DECODED_AT_ONCE):
            yield array[start : start + DECODED_AT_ONCE].tolist()
        return
    if file is not None:
        from tessera.tokenizers.contract import read_text

        text = "".join(read_text(file))
    else:
        text = " ".join(words) if words else "".join(_standard_input())
    found = re.split(r"[\s,\[\]]+", text)
    try:
        yield [int(word) for word in found if word]
    except ValueError:
        wrong = next(word for word in found if word and not re.fullmatch(r"[+-]?\d+", word))
        raise InputError(f"{wrong!r} is not an id: ids are whole numbers with spaces or commas between them") from None


def _ids_array(path: Path, tokenizer: "Tokenizer") -> "np.ndarray":
    """The ids of a file, mapped into memory rather than read."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.stat().st_size == 0:
            array = np.zeros(0, tokenizer.dtype)
        else:
            array = np.memmap(path, dtype=np.dtype(tokenizer.dtype).newbyteorder("<"), mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: no file of ids ({error})") from None
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: expected whole numbers in one row, found {array.dtype} of shape {array.shape}")
    return array


@app.command()
def show(tokenizer: Named, as_json: AsJson = False) -> None:
    """One tokenizer: what it is, its special tokens, its longest tokens, a sample of its vocabulary."""
    from tessera.tokenizers.vocabulary.segments import visible

    content = vocabulary.describe(open_tokenizer(tokenizer))
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    out = console()
    for name, value in content.items():
        if not isinstance(value, dict):
            out.print(f"[bold]{name:<20}[/bold] {escape(str(value))}")
            continue
        out.print(f"[bold]{name}[/bold]" if value else f"[bold]{name:<20}[/bold] none")
        for inner, number in list(value.items())[:MOST_SHOWN]:
            out.print(f"  {number:>9}  {escape(visible(inner))}")
        if len(value) > MOST_SHOWN:
            out.print(f"  {'':>9}  and {len(value) - MOST_SHOWN} more")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A tokenizer file or folder of another library.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write.")],
    format: Annotated[str | None, typer.Option(help="What it is; told by its content if not given.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Where the file has none: gpt2, gpt4, ... or an expression.")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=ID, for each special token that the file does not have.")
    ] = None,
    force: Force = False,
) -> None:
    """A tokenizer of another library as a tokenizer.json of ours."""
    from tessera.tokenizers.formats import import_tokenizer

    refuse_existing([out], force=force)
    settings: dict[str, Any] = {"pattern": pattern} if pattern is not None else {}
    if special:
        settings["specials"] = dict(map(_special, special))
    tokenizer = import_tokenizer(source, format=format, **settings)
    _save(tokenizer, out)
    console().print(f"{tokenizer.kind} with {tokenizer.n_vocab:,} tokens in {escape(str(out))}")


def _special(text: str) -> tuple[str, int | None]:
    """`<|end|>=100257` has its id, `<|end|>` takes the next free one."""
    found = re.fullmatch(r"(.+)=(\d+)", text, re.DOTALL)
    return (found[1], int(found[2])) if found else (text, None)


@app.command()
def export(
    tokenizer: Named,
    format: Annotated[str, typer.Option(help="huggingface, tiktoken, gpt2, sentencepiece or tessera.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; for huggingface and gpt2 the folder.")],
    force: Force = False,
) -> None:
    """A tokenizer as another library reads it."""
    from tessera.store.files import make_folders
    from tessera.tokenizers.formats import export_tokenizer

    opened = open_tokenizer(tokenizer)
    taken = list(out.iterdir()) if out.is_dir() else [out, *out.parent.glob(f"{glob.escape(out.name)}.*")]
    if not force and any(path.exists() for path in taken):
        raise InputError(f"{out} is there already: --force overwrites what has the names of the new files")
    make_folders(out.parent)
    for path in export_tokenizer(opened.tokenizer, out, format=format):
        console().print(f"{escape(str(path))}, {size(path.stat().st_size)}")
