"""What a request may say, and within which bounds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from unraze.config import SampleConfig
from unraze.data.shape import size_in
from unraze.edit.editing import REPEATS, Inpainting

__all__ = [
    "Calls",
    "Client",
    "Data",
    "Destroyed",
    "Drawn",
    "Edited",
    "Evaluated",
    "Example",
    "Inpainted",
    "Interpolated",
    "Near",
    "Picture",
    "Sampled",
    "Started",
    "Token",
    "Training",
    "Upload",
    "Varied",
    "Walked",
]

MOST_PICTURES = 64
MOST_STEPS = 10**9
MOST_MASK = 2**18
"""Characters of a mask: of 1024 x 1024 pixels at most."""

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z_-]+$")]
Seed = Annotated[int, Field(ge=0, le=2**53)]
Class = Annotated[int, Field(ge=0, le=10**6)]
Word = Annotated[str, Field(max_length=40)]
Setting = bool | int | float | Word | Annotated[list[float], Field(max_length=1001)] | None
"""What a key of `sample` may be: no deeper, no longer."""
Time = Annotated[float, Field(ge=0, le=10**6)]


class Asked(BaseModel):
    """A request: what it does not know is refused, and no number is infinite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Token(Asked):
    """The token of the address."""

    token: Annotated[str, Field(max_length=200)]


class Client(Asked):
    """Which tab asks; what is not to be kept ends with it."""

    client: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z-]+$")]


class Example(Asked):
    """An image of the data set."""

    kind: Literal["example"]
    number: Annotated[int, Field(ge=0, le=2**40)]


class Upload(Asked):
    """A picture that was dropped."""

    kind: Literal["upload"]
    id: Name


class Drawn(Asked):
    """A picture that a job has drawn."""

    kind: Literal["drawn"]
    job: Name
    image: Annotated[int, Field(ge=0, lt=MOST_PICTURES)]


Picture = Annotated[Example | Upload | Drawn, Field(discriminator="kind")]


class Sampled(Client):
    """Draw: images 0 … count-1 of a seed. `settings` are changes of those of the run."""

    run: Name
    keep: bool = False
    checkpoint: Annotated[int, Field(ge=0, le=MOST_STEPS)] | Literal["best"] | None = None
    raw: bool = False
    seed: Seed = 0
    count: Annotated[int, Field(ge=1, le=MOST_PICTURES)] = 16
    classes: Class | Literal["all", "none"] | None = None
    settings: dict[Word, Setting] = Field(
        default_factory=dict,
        max_length=20,
        description="keys of `sample` in a run's config: " + ", ".join(SampleConfig.model_fields),
    )


class Walked(Client):
    """Walk from x_t to x_0, greedy and random side by side; η is the share of σ that is added."""

    run: Name
    image: Picture
    t: Time
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=200)] = 50
    label: Annotated[Class | None, Field(alias="class")] = None
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    sigma: Literal["beta", "beta_tilde", "learned"] = "beta"


class _Edit(Client):
    """What all edits are asked with: steps and guidance where they are not to be the usual ones."""

    run: Name
    steps: Annotated[int | None, Field(ge=1, le=10_000)] = None
    guidance: Annotated[float | None, Field(ge=0, le=100)] = None
    label: Annotated[Class | None, Field(alias="class")] = None


class Varied(_Edit):
    """Destroy an image to t = strength·T, and reconstruct it from there; or, where it is told
    which class it is `of`, make it one of another class, its layout kept."""

    edit: Literal["vary"]
    image: Picture
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    of: Class | None = None
    seed: Seed = 0
    count: Annotated[int, Field(ge=1, le=MOST_PICTURES)] = 4


class Inpainted(_Edit):
    """Draw anew what is marked in an image; the rest stays as it is."""

    edit: Literal["inpaint"]
    image: Picture
    mask: Annotated[
        str,
        Field(
            max_length=MOST_MASK,
            pattern=r"^[0-9A-Za-z+/]*={0,2}$",
            description="base64 of one bit a pixel, row by row, eight in a byte, the first as the "
            "highest; 1 is drawn anew",
        ),
    ]
    method: Inpainting = "pigdm"
    repeats: Annotated[int, Field(ge=1, le=100, description="of RePaint alone")] = REPEATS
    seed: Seed = 0
    count: Annotated[int, Field(ge=1, le=MOST_PICTURES)] = 4


class Interpolated(_Edit):
    """Go from one image to another through their noise, in `count` pictures."""

    edit: Literal["interpolate"]
    image: Picture
    to: Picture
    count: Annotated[int, Field(ge=2, le=MOST_PICTURES)] = 9
    iterations: Annotated[int, Field(ge=1, le=20)] = 3


Edited = Annotated[Varied | Inpainted | Interpolated, Field(discriminator="edit")]


class Destroyed(Asked):
    """What is x_t, and what does the network say of it?"""

    image: Picture
    t: Time
    seed: Seed = 0
    label: Annotated[Class | None, Field(alias="class")] = None


class Near(Client):
    """Which training images are nearest to a drawn one?"""

    job: Name
    image: Annotated[int, Field(ge=0, lt=MOST_PICTURES)]
    count: Annotated[int, Field(ge=1, le=32)] = 8


class Calls(Client):
    """How does quality grow with the number of network calls?"""

    run: Name
    calls: Annotated[
        list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=1, max_length=12)
    ] = [2, 4, 8, 16, 32]
    count: Annotated[int, Field(ge=100, le=10_000)] = 500
    seed: Seed = 0


class Sized(Asked):
    """Images brought to a size: "32", or height x width, "32x48"; None for their own."""

    size: Annotated[str | None, Field(max_length=20)] = None

    @property
    def wanted_size(self) -> tuple[int, int] | None:
        """Height and width; raises `InputError`."""
        return None if self.size is None else size_in(self.size, "size")


class Data(Client, Sized):
    """Look at a set of images."""

    source: Name
    channels: Literal[1, 3] | None = None


class Evaluated(Client):
    """Measure a run, as `unraze eval` does."""

    run: Name
    count: Annotated[int, Field(ge=100, le=100_000)] = 2000


class Training(Sized):
    """What to train, and for how long: one of minutes and steps."""

    source: Name
    preset: Annotated[str, Field(max_length=64)] = "fast"
    minutes: Annotated[float | None, Field(gt=0, le=60 * 24 * 365)] = None
    steps: Annotated[int | None, Field(ge=1, le=MOST_STEPS)] = None
    channels: Literal[1, 3] | None = None
    classes: bool = False
    flip: bool = False
    seed: Seed = 0
    eval_every: Annotated[int | None, Field(ge=1, le=MOST_STEPS)] = None
    batch: Annotated[int | None, Field(ge=1, le=2**24)] = None
    lr: Annotated[float | None, Field(gt=0, le=1000)] = None
    held_out: Annotated[float | None, Field(ge=0, le=0.5)] = None
    name: Annotated[str | None, Field(max_length=60, pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]*$")] = None


class Started(Training, Client):
    """The same, to be estimated first."""
