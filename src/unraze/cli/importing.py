"""`unraze import …`: runs made of models that other programs trained."""

from cyclopts import App

from unraze.cli.app import EXCHANGE, app

__all__ = ["importing"]

importing = App(
    name="import",
    help="Make a run of a model that another program trained.",
    help_epilogue=(
        "Examples:\n\n"
        "  unraze import diffusers FOLDER\n"
        "  unraze import lucidrains model-10.pt --image-size 64"
    ),
    group=EXCHANGE,
    sort_key=1,
)
app.command(importing)
