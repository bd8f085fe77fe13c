"""`unraze export …`: what a run learned, in the formats of other programs."""

from cyclopts import App

from unraze.cli.app import EXCHANGE, app

__all__ = ["exporting"]

exporting = App(
    name="export",
    help="Write what a run learned in the format of another program.",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze export diffusers RUN --out FOLDER\n"
        "  unraze export onnx RUN --out FOLDER"
    ),
    group=EXCHANGE,
    sort_key=2,
)
app.command(exporting)
