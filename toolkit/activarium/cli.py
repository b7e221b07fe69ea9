"""The terminal's door: `activarium list | describe | doctor | capture | atlas | demo | gallery`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from activarium.errors import ActivariumError, CertificateError, InputError, unknown

if TYPE_CHECKING:
    from activarium._registry import Entry

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm")


class _Lessons(TyperGroup):
    """Our own errors explain themselves: their words without a traceback, exit code 2. Others keep theirs."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ActivariumError as error:
            # Not rich markup: a message may hold `[…]`. Not wrapped: it may be searched for.
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Lessons,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Look inside language and vision transformers, on numbers you can trust.",
)


@app.command("list")
def list_() -> None:
    """Every analysis, widget and bundled model, each with the question it answers."""
    from activarium import gallery

    console = Console()
    for title, lines in gallery.everything().items():
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for line in lines or [gallery.Line("none", "", "")]:
            table.add_row(line.name, line.first_line)
        console.print(f"[bold]{title}[/]", table, "", sep="\n")


@app.command()
def describe(name: Annotated[str, typer.Argument(help="An analysis, a widget or a bundled model.")]) -> None:
    """The whole docstring of an analysis or widget, or the card of a bundled model."""
    from activarium import data, gallery

    entries = gallery.entries()
    if name in entries:
        typer.echo(_description(entries[name]))
    elif name in data.models():
        typer.echo(gallery.card(name))
    else:
        raise unknown("analysis, widget or model", name, [*entries, *data.models()])


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A bundled name, a local folder or a hub id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Examine a tiny model of every class that transformers offers.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="With --all: this class alone; may be repeated.")] = None,
    to: Annotated[Path | None, typer.Option(help="With --all: folder that gets families.md and families.json.")] = None,
    workers: Annotated[int, typer.Option(help="With --all: classes examined at the same time.")] = 1,
) -> None:
    """Load a model and print the proof that what is read is what it computes; exit code 1 if the proof fails."""
    if everything or only:
        return _doctor_all(only or [], to, workers)
    if model is None:
        raise InputError("Name a model to examine, or give --all for every class of the installed transformers.")
    import activarium as act

    try:
        loaded = act.load(model)
    except CertificateError as error:
        typer.echo(f"{model} fails its certificate.\n{error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(str(loaded.certificate))
    if not getattr(loaded.certificate, "passed", True):
        raise typer.Exit(1)


def _doctor_all(only: list[str], to: Path | None, workers: int) -> None:
    """Every class, with a bar; exit code 1 if one that certifies is contradicted by transformers' own output."""
    from rich.progress import track

    from activarium.testing import census

    if to is not None and not to.is_dir():
        raise InputError(f"There is no folder {to} to write families.md into; make it first.")
    found = [*track(census.walk(only, workers=workers), "classes", total=census.count(only), console=Console(stderr=True))]
    for verdict in found if only else []:
        typer.echo(f"{verdict.name}: {verdict.outcome} ({verdict.checks} checks) {verdict.reason} {verdict.oracle or ''}".rstrip())
        for site, reason in verdict.missing.items():
            typer.echo(f"  {site}: {reason}")
    typer.echo(", ".join(f"{number} {outcome}" for outcome, number in census.counts(found).items()))
    for path in census.write(found, to) if to is not None else []:
        typer.echo(f"wrote {path}")
    if any(v.outcome == "disputed" for v in found):
        raise typer.Exit(1)


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="A bundled name, a local folder or a hub id.")],
    data: Annotated[Path, typer.Option(help="Text file (one example a line), JSON list, image, or folder of images.")],
    sites: Annotated[list[str], typer.Option(help="Site or pattern, 'blocks.*.mlp.post'; may be repeated.")],
    to: Annotated[Path, typer.Option(help="Folder to write, NAME.acts; an unfinished capture goes on where it stopped.")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; by default the model's own.")] = None,
    append: Annotated[bool, typer.Option(help="Add the file to a folder that holds other data.")] = False,
    on: Annotated[str | None, typer.Option(help="'ray' for worker processes on this machine, or a Ray cluster's address.")] = None,
) -> None:
    """Run a model over a file and keep what was read in a store."""
    inputs = read_inputs(data)  # before the model: a wrong path should not cost its loading
    import activarium as act

    given: dict[str, Any] = {"dtype": dtype, "append": append or None, "on": on}
    options = {name: value for name, value in given.items() if value is not None}
    stored = act.capture(act.load(model), inputs, sites=sites, to=to, **options)
    typer.echo(repr(stored))


@app.command()
def atlas(
    model: Annotated[str, typer.Argument(help="A bundled name, a local folder or a hub id.")],
    data: Annotated[Path, typer.Option(help="Text file (one example a line), JSON list, image, or folder of images.")],
    to: Annotated[Path | None, typer.Option(help="Also write an interactive page, NAME.html.")] = None,
    on: Annotated[str | None, typer.Option(help="'ray' for all processors of this machine, or a Ray cluster's address.")] = None,
) -> None:
    """How large, sparse and heavy-tailed every site is: one pass of a model over a file."""
    inputs = read_inputs(data)
    import activarium as act
    from activarium.workflows.export import export_page

    report = act.atlas(act.load(model), inputs, on=on)
    typer.echo(repr(report))
    if to is not None:
        typer.echo(f"Written: {export_page({report.title: report}, to, title=report.title)}")


@app.command()
def demo() -> None:
    """Capture, store, analyse and show the bundled models; writes out/tour.html."""
    from importlib import import_module

    import_module("activarium.demo").main()


@app.command()
def gallery(
    readme: Annotated[Path, typer.Option(help="File whose gallery table is rewritten.")] = Path("README.md"),
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 if the table is out of date.")] = False,
) -> None:
    """Write the README's table from what the folders hold."""
    from activarium import gallery as writer

    if check:
        current = writer.is_current(readme)
        typer.echo(f"{readme} is {'up to date' if current else 'out of date: run `activarium gallery`'}.")
        raise typer.Exit(0 if current else 1)
    typer.echo(f"{readme}: {'rewritten' if writer.refresh(readme) else 'already up to date'}.")


def read_inputs(path: Path) -> list[Any]:
    """Examples from a text file (a line each), a JSON list (texts or token ids), an image or a folder of images.

    Raises:
        InputError: The path does not exist, or holds none of these.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not found:
            raise InputError(f"{path} holds no images ({' '.join(PICTURES)}). Give a folder of images, a text file or a JSON list.")
        return [_picture(p) for p in found]
    if not path.is_file():
        raise InputError(f"There is no file {path}. Give a text file (one example a line), a JSON list, or a folder of images.")
    if path.suffix.lower() in PICTURES:
        return [_picture(path)]
    try:
        text = path.read_text(encoding="utf-8")
        lines = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except ValueError as error:  # JSON and encoding errors are both children of it
        raise InputError(f"{path} cannot be read as text: {error}. Save it as UTF-8, one example a line, or as a JSON list.") from None
    if not isinstance(lines, list) or not lines:
        raise InputError(
            f"{path} holds {'no examples' if isinstance(lines, list) else type(lines).__name__}; wanted a list with at least one."
        )
    return lines


def _picture(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        from activarium.errors import MissingExtra

        raise MissingExtra("Reading images needs Pillow. Install it with: pip install 'activarium[vision]'") from None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}. Convert it to PNG, or take it out of the folder.") from None


def _description(entry: Entry) -> str:
    place = entry.module.removeprefix("activarium.")
    call = f"act.{place.partition('.')[0]}.{entry.name}({', '.join(entry.parameters)})"
    return f"{call}\n\n{entry.docstring}"


if __name__ == "__main__":
    app()
