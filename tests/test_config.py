"""Configuration: every option checked once, with an answer that helps."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel

from unraze.config import (
    OF_A_SAMPLER,
    Config,
    LeanConfig,
    UNetConfig,
    from_dict,
    from_toml,
    preset,
    preset_names,
    preset_text,
    to_toml,
    updated,
)
from unraze.errors import InputError
from unraze.schedule import from_config


def _read_back(config: Config, folder: Path) -> Config:
    path = folder / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return from_toml(path, complete=True)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        changes["network.kind"] = "unet"
        changes["network.dim"] = draw(st.integers(1, 512))
        changes["network.head_dim"] = draw(st.none() | st.integers(1, 64))
        changes["network.multipliers"] = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    else:
        changes["network.widths"] = draw(st.lists(st.integers(1, 512), min_size=1, max_size=5))
    budget = draw(st.sampled_from(["minutes", "steps", "epochs"]))
    changes[f"train.{budget}"] = draw(
        st.integers(1, 10**6) if budget == "steps" else st.floats(1e-3, 1e6)
    )
    changes |= {
        "about": draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        "data.source": draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        "data.size": draw(st.none() | st.tuples(st.integers(1, 512), st.integers(1, 512))),
        "data.channels": draw(st.sampled_from([None, 1, 3])),
        "schedule.steps": draw(st.integers(2, 5000)),
        "schedule.rescaled": draw(st.booleans()),
        "loss.huber_delta": draw(st.floats(1e-12, 1e12)),
        "loss.times_mean": draw(st.floats(-1e300, 1e300)),
        "loss.sigma_data": draw(st.none() | st.floats(1e-3, 10)),
        "train.lr": draw(st.floats(1e-9, 10)),
        "train.betas": draw(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999))),
        "train.threads": draw(st.none() | st.integers(1, 64)),
        "sample.steps": draw(st.integers(1, 1000)),
        "sample.guidance_interval": draw(st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)),
    }
    return updated(Config(), changes)


@settings(deadline=None)
@given(config=configs())
def test_what_is_written_reads_back_the_same(config: Config, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("toml")
    assert _read_back(config, folder) == config


def test_whatever_may_be_absent_is_absent_by_default() -> None:
    # TOML has no word for None: what is left out reads back as the default, so that must be None
    def walk(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
                assert field.default is None, f"{model.__name__}.{name}"
            for part in (kind, *get_args(kind)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    walk(part)

    walk(Config)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_reads_and_reads_back(name: str, tmp_path: Path) -> None:
    config = preset(name)
    assert config.preset == name
    assert _read_back(config, tmp_path) == config
    schedule = from_config(config.schedule.model_copy(update={"allow_signal": True}))
    if name != "annotated-original":  # which asks for --allow-signal
        assert torch.equal(schedule.alpha_bar, from_config(config.schedule).alpha_bar)
    assert config.sample.steps <= schedule.steps
    if config.loss.parametrisation in ("eps", "eps_step"):
        assert schedule.alpha_bar[-1] > 0  # the noise alone does not say the picture
    assert preset_text(name).startswith("#")


def test_the_presets_are_those_of_the_documents() -> None:
    assert preset_names()[0] == "fast"
    assert set(preset_names()) >= {"fast", "literal", "annotated", "annotated-original", "ddpm"}
    assert preset("literal").loss.parametrisation == "eps_step"
    assert preset("literal").loss.objective in ("four-variable", "reduced")


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no preset 'anotated', did you mean 'annotated'"):
        preset("anotated")
    with pytest.raises(InputError, match=r"no preset 'FAST', did you mean 'fast'"):
        preset("FAST")
    with pytest.raises(InputError, match="the presets are fast, "):
        preset("../../etc/passwd")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train": {"leraning_rate": 1}}, r"no key 'train.leraning_rate'"),
        ({"train": {"wramup": 1}}, r"no key 'train.wramup', did you mean 'train.warmup'"),
        ({"trian": {"lr": 1.0}}, r"no key 'trian', did you mean 'train'"),
        ({"sampel": {}}, r"no key 'sampel', did you mean 'sample'"),
        ({"network": {"kind": "unet", "dims": 3}}, r"'network.dims', did you mean 'network.dim'"),
        ({"network": {"kind": "lean", "width": [3]}}, r"did you mean 'network.widths'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        from_dict(values, where="my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"train": {"steps": True}}, "train.steps"),
        ({"train": {"steps": "12"}}, "train.steps"),
        ({"train": {"steps": 12.5}}, "train.steps"),
        ({"train": {"steps": 0}}, "train.steps"),
        ({"train": {"steps": -3}}, "train.steps"),
        ({"train": {"minutes": 0}}, "train.minutes"),
        ({"train": {"minutes": "soon"}}, "train.minutes"),
        ({"train": {"minutes": float("inf")}}, "train.minutes"),
        ({"train": {"lr": float("nan")}}, "train.lr"),
        ({"train": {"lr": True}}, "train.lr"),
        ({"train": {"lr": [1e-3]}}, "train.lr"),
        ({"train": {"ema": 1.0}}, "train.ema"),
        ({"train": {"betas": [0.9]}}, "train.betas"),
        ({"train": {"dtype": "float16"}}, "train.dtype"),
        ({"train": {"keep": 1}}, "train.keep"),
        ({"data": {"flip": "yes"}}, "data.flip"),
        ({"data": {"flip": 1}}, "data.flip"),
        ({"data": {"augment": 1.5}}, "data.augment"),
        ({"data": {"augment": True}}, "data.augment"),
        ({"data": {"augment": "often"}}, "data.augment = 'often': give 'auto' or a number"),
        ({"data": {"size": 28}}, "data.size"),
        ({"data": {"size": [28, 0]}}, "data.size"),
        ({"data": {"channels": 2}}, "data.channels"),
        ({"data": {"source": 3}}, "data.source"),
        ({"data": 3}, "data"),
        ({"schedule": {"steps": 1}}, "schedule.steps"),
        ({"schedule": {"kind": "square"}}, "schedule.kind"),
        ({"network": {"kind": "dit"}}, "network"),
        ({"network": {"kind": "lean", "widths": []}}, "network.widths"),
        ({"sample": {"eta": 1.5}}, "sample.eta"),
        ({"sample": {"guidance": -1}}, "sample.guidance"),
        ({"sample": {"sampler": "euler"}}, "sample.sampler"),
        ({"sample": {"steps": -1}}, "sample.steps"),
    ],
)
def test_a_value_that_will_not_do_is_named(values: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=f"^here: {names}") as error:
        from_dict(values, where="here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train": {"steps": "12"}}, "train.steps = '12': give a whole number"),
        ({"train": {"steps": 12.5}}, "train.steps = 12.5: give a whole number"),
        ({"train": {"steps": True}}, "train.steps = true: give a whole number"),
        ({"train": {"minutes": "soon"}}, "train.minutes = 'soon': give a number"),
        ({"train": {"minutes": 0.0}}, "train.minutes = 0.0: give more than 0"),
        ({"train": {"minutes": float("inf")}}, "train.minutes = inf: give a finite number"),
        ({"train": {"threads": 2000}}, "train.threads = 2000: give at most 1024"),
        ({"train": {"ema": 1.0}}, "train.ema = 1.0: give less than 1"),
        ({"train": {"keep": 1}}, "train.keep = 1: give at least 2"),
        ({"train": {"betas": [0.9]}}, "train.betas = [0.9]: give one number more"),
        ({"data": {"flip": "yes"}}, "data.flip = 'yes': give true or false"),
        ({"data": {"size": 28}}, "data.size = 28: give a list of numbers"),
        ({"data": {"size": [28, 28, 1]}}, "data.size = [28, 28, 1]: give 2 numbers"),
        ({"data": {"source": 3}}, "data.source = 3: give a text in quotes"),
        ({"data": 3}, "data = 3: give a section of keys"),
        ({"network": {"kind": "lean", "widths": []}}, "network.widths = []: give 1 number or more"),
        (
            {"sample": {"sampler": "euler"}},
            "sample.sampler = 'euler': give 'greedy', 'random', 'ddim',",
        ),
    ],
)
def test_what_would_do_is_said_in_the_words_of_the_file(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(values, where="here")
    assert str(error.value).startswith(f"here: {says}")


def test_whole_numbers_do_for_fractions() -> None:
    assert from_dict({"train": {"minutes": 4, "betas": [0, 0]}}).train.minutes == 4.0


@pytest.mark.parametrize("both", [("minutes", "steps"), ("steps", "epochs"), ("minutes", "epochs")])
def test_a_budget_given_twice_is_refused(both: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=f"budget is given twice .{both[0]} and {both[1]}"):
        from_dict({"train": dict.fromkeys(both, 3)})
    with pytest.raises(InputError, match="budget is given twice"):
        updated(preset("fast"), {f"train.{b}": 3 for b in both})


@pytest.mark.parametrize("budget", ["minutes", "steps", "epochs"])
def test_one_budget_takes_the_place_of_another(budget: str) -> None:
    for name in preset_names():
        train = updated(preset(name), {f"train.{budget}": 7}).train
        given_now = {k: getattr(train, k) for k in ("minutes", "steps", "epochs")}
        assert {k for k, v in given_now.items() if v is not None} == {budget}


def test_the_kind_of_network_can_be_switched() -> None:
    config = updated(Config(), {"network.kind": "unet", "network.dim": 16})
    assert config.network == UNetConfig(dim=16)
    back = updated(config, {"network.dropout": 0.1, "network.kind": "lean"})
    assert back.network == LeanConfig(dropout=0.1)
    same = updated(config, {"network.kind": "unet"})
    assert same.network.dim == 16  # naming the kind it has resets nothing
    with pytest.raises(InputError, match=r"no key 'network.dim'"):
        updated(Config(), {"network.dim": 16})
    with pytest.raises(InputError, match="give 'lean' or 'unet' or 'unet2d' or 'lucidrains'"):
        updated(Config(), {"network.kind": "dit"})
    with pytest.raises(InputError, match=r"network\.kind"):
        updated(Config(), {"network.kind": ("unet",)})


def test_another_sampler_takes_the_keys_of_the_first_with_it(tmp_path: Path) -> None:
    """By an option and in a file alike, whose other keys are the preset's."""
    path = tmp_path / "mine.toml"
    for name in preset_names():
        before = preset(name).sample
        for sampler in sorted({"ddim", "heun", "random", "adams"} - {before.sampler}):
            path.write_text(f'preset = "{name}"\n[sample]\nsampler = "{sampler}"')
            for after in (
                updated(preset(name), {"sample.sampler": sampler}).sample,
                from_toml(path).sample,
            ):
                own = {key: getattr(after, key) for key in (*OF_A_SAMPLER, "final_noise")}
                assert own == {**dict.fromkeys(OF_A_SAMPLER), "final_noise": False}
                assert after.steps == before.steps
    assert updated(preset("fast"), {"sample.sampler": "adams"}).sample.order == 2
    with pytest.raises(InputError, match='order = 2: sampler = "ddim" has none'):
        updated(preset("fast"), {"sample.sampler": "ddim", "sample.order": 2})


def test_an_objective_of_the_text_takes_weights_and_target_with_it() -> None:
    needs = {"loss.parametrisation": "eps_step", "loss.continuous": False}
    loss = updated(preset("fast"), needs | {"loss.objective": "reduced"}).loss
    assert (loss.weighting, loss.target) == (None, None)
    with pytest.raises(InputError, match="leave out weighting"):
        updated(Config(), needs | {"loss.objective": "reduced", "loss.weighting": "v"})


@pytest.mark.parametrize("key", ["train", "train.lrr", "lr", "train.lr.x", "", ".", "network"])
def test_only_a_leaf_that_exists_can_be_changed(key: str) -> None:
    with pytest.raises(InputError, match="no key") as error:
        updated(Config(), {key: 3})
    assert "\n" not in str(error.value)
    if key == "train.lrr":
        assert "did you mean 'train.lr'" in str(error.value)


def test_what_is_updated_is_checked_and_the_old_is_untouched() -> None:
    config = Config()
    with pytest.raises(InputError, match=r"train.lr = -1"):
        updated(config, {"train.lr": -1})
    assert updated(config, {"train.lr": 0.5}).train.lr == 0.5
    assert config == Config()


@pytest.mark.parametrize("objective", ["four-variable", "reduced"])
def test_the_losses_of_the_text_ask_for_what_they_need(objective: str) -> None:
    good = {"objective": objective, "parametrisation": "eps_step", "continuous": False}
    assert from_dict({"loss": good}).loss.objective == objective
    for key, value in (("parametrisation", "eps"), ("continuous", True), ("distance", "l1")):
        with pytest.raises(InputError, match=f"loss.*{objective}.*{key} = "):
            from_dict({"loss": good | {key: value}})


def test_a_batch_must_divide_into_its_parts() -> None:
    with pytest.raises(InputError, match=r"batch = 10 .*3 equal parts.*divisor"):
        from_dict({"train": {"batch": 10, "accumulate": 3}})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"[train]\nlr = 2000-01-01", "train.lr"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"mine\.toml: .*{says}") as error:
        from_toml(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as error:
            from_toml(path)
        assert str(path) in str(error.value)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.lr = 1.0  # type: ignore[misc]


def test_every_choice_of_the_configuration_can_be_chosen() -> None:
    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            if get_origin(field.annotation) is Literal:
                for choice in get_args(field.annotation):
                    if prefix + name in ("loss.objective", "network.kind"):
                        continue
                    if choice == "consistency":  # of a distilled run alone
                        continue
                    needs = {"loss.variance": "learned"} if choice == "learned" else {}
                    if choice == "given":
                        needs = {"schedule.rescaled": False, "schedule.steps": 2}
                        needs["schedule.alpha_bar"] = (1.0, 0.5, 0.0)
                    assert updated(Config(), needs | {prefix + name: choice})
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation, f"{prefix}{name}.")

    walk(Config, "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spacing": "tme"}, r"sample\.spacing = 'tme': give 'time', 'angle'"),
        ({"spacing": (0.0, -1.0)}, r"sample\.spacing\.1 = -1\.0: give at least 0"),
        ({"spacing": (0.0, 9.0), "steps": 2}, r"give steps \+ 1 = 3 times that rise from 0 to T"),
        ({"spacing": (0.0, 9.0, 9.0), "steps": 2}, "times that rise"),
        ({"spacing": (1.0, 9.0), "steps": 1}, "times that rise from 0"),
        ({"spacing": (0.0, 9.0), "steps": 1, "sampler": "heun"}, "not for heun"),
        ({"order": 2}, r'order = 2: sampler = "ddim" has none; .* take unipc or'),
        ({"order": 4, "sampler": "unipc"}, r'order = 4: "unipc" has order 1 to 3'),
        ({"order": 5, "sampler": "deis"}, r"sample\.order = 5: give at most 4"),
        ({"eta": 0.5, "sampler": "heun"}, r'eta = 0\.5: sampler = "heun" has none'),
        ({"restart_repeats": 2}, "restart_repeats = 2: .* or take restart"),
        ({"restart_interval": (0.5, 0.5), "sampler": "restart"}, r"0\.5, 0\.5: must rise"),
        ({"sampler": "restart", "steps": 2}, "restart needs 3"),
    ],
)
def test_a_sampler_is_given_what_it_has(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        updated(Config(), {f"sample.{key}": value for key, value in changes.items()})


GIVEN = {
    "schedule.kind": "given",
    "schedule.steps": 3,
    "schedule.rescaled": False,
    "schedule.alpha_bar": (1.0, 0.1 + 0.2, 1 / 3e3, 0.0),
}


def test_a_given_schedule_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    config = updated(Config(), GIVEN)
    back = _read_back(config, tmp_path)
    assert back == config
    assert from_config(back.schedule).alpha_bar.tolist() == list(GIVEN["schedule.alpha_bar"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha_bar": None}, r'schedule: alpha_bar is missing: kind = "given" needs'),
        ({"kind": "linear"}, r'alpha_bar: kind = "linear" has its own; leave it out'),
        ({"steps": 4}, r"alpha_bar: 4 numbers, where steps = 4 needs ᾱ_0 … ᾱ_T, 5"),
        ({"rescaled": True}, r'rescaled = true: kind = "given" is taken as it is'),
        ({"zero_terminal": True}, r"zero_terminal = true: .* set zero_terminal = false"),
        ({"alpha_bar": (0.9, 0.5, 0.3, 0.0)}, "alpha_bar: give numbers that fall from 1"),
        ({"alpha_bar": (1.0, 0.5, 0.5, 0.0)}, "fall from 1, each below the one before"),
        ({"alpha_bar": (1.0, 0.5, 0.3, -0.1)}, r"schedule\.alpha_bar\.3 = -0\.1: give at least 0"),
        ({"alpha_bar": (1.0, 0.5, 0.3, "x")}, r"schedule\.alpha_bar\.3 = 'x': give a number"),
    ],
)
def test_a_given_schedule_is_all_there_is(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        updated(Config(), GIVEN | {f"schedule.{key}": value for key, value in changes.items()})


def test_a_given_schedule_that_leaves_signal_is_refused_too() -> None:
    config = updated(Config(), GIVEN | {"schedule.alpha_bar": (1.0, 0.5, 0.3, 0.2)})
    with pytest.raises(InputError, match=r"ᾱ_T = 0\.2"):
        from_config(config.schedule)
    allowed = from_config(config.schedule.model_copy(update={"allow_signal": True}))
    assert float(allowed.alpha_bar[-1]) == 0.2


def test_times_of_ones_own_are_written_and_read_back(tmp_path: Path) -> None:
    config = updated(Config(), {"sample.spacing": (0.0, 2.5, 1000.0), "sample.steps": 2})
    assert _read_back(config, tmp_path) == config


def test_a_learned_sigma_needs_a_learned_variance() -> None:
    learned = {"loss.variance": "learned"}
    assert updated(Config(), learned | {"sample.sigma": "learned"}).sample.sigma == "learned"
    with pytest.raises(
        InputError, match=r'sample\.sigma = "learned" where loss\.variance = "fixed"'
    ):
        updated(Config(), {"sample.sigma": "learned"})
    with pytest.raises(InputError, match="knows no variance"):
        updated(preset("literal"), learned)


@pytest.mark.parametrize("kind", [None, "vit"])
def test_a_network_of_no_known_kind_is_told_the_kinds(kind: str | None) -> None:
    network = {"blocks": 1} if kind is None else {"kind": kind}
    with pytest.raises(InputError, match=r"network\.kind.*'lean'.*'unet'"):
        from_dict({"network": network})


def test_a_file_is_laid_over_the_preset_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "literal"\n[train]\nsteps = 7\nlr = 0.5\n', encoding="utf-8")
    mine, literal = from_toml(path), preset("literal")
    assert (mine.loss, mine.network, mine.schedule) == (
        literal.loss,
        literal.network,
        literal.schedule,
    )
    assert (mine.train.steps, mine.train.minutes, mine.train.lr) == (7, None, 0.5)
    assert mine.train.batch == literal.train.batch
    path.write_text('[network]\nkind = "unet"\ndim = 8\n', encoding="utf-8")
    assert from_toml(path).network == UNetConfig(dim=8)
    assert from_toml(path).loss == preset("fast").loss
    path.write_text('preset = "litteral"\n', encoding="utf-8")
    with pytest.raises(InputError, match="did you mean 'literal'"):
        from_toml(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss.weighting": "min-snr"}, "leave out weighting"),
        ({"loss.target": "x0"}, "leave out target"),
        ({"loss.distance": "l1"}, "squared norm"),
        ({"loss.continuous": True}, "whole steps"),
        ({"loss.parametrisation": "eps"}, "step noise"),
    ],
)
def test_the_losses_of_the_text_ignore_no_option(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        updated(preset("literal"), changes)


def test_a_run_of_before_images_were_held_out_holds_none_out(tmp_path: Path) -> None:
    text = to_toml(preset("fast"))
    assert "held_out = 0.1\n" in text
    (tmp_path / "config.toml").write_text(text.replace("held_out = 0.1\n", ""))
    assert from_toml(tmp_path / "config.toml", complete=True).data.held_out == 0
    assert from_toml(tmp_path / "config.toml").data.held_out == 0.1  # laid over the preset
    assert all(preset(name).data.held_out == 0.1 for name in preset_names())
