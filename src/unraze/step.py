"""One step of training: the gradient of the configured loss on the batch of step n.

Everything drawn is a function of (seed, n, place in the batch), see `unraze.batches`.
"""

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import assert_never

from unraze import augment, ema, nn as networks, optim, rng, schedule as schedules
from unraze.batches import (
    augmentation_of,
    labels_of,
    looks_twice,
    samples_of,
    seed_dropout,
    times_of,
)
from unraze.bound import bits, unit_step
from unraze.clusters import Clusters, labelled
from unraze.config import Config, TrainConfig
from unraze.consistency import below, consistency, jump
from unraze.data import Images, batch as assemble
from unraze.denoiser import Denoiser, clipped, denoiser, guided, predict, raw_output
from unraze.hardware import moment, seconds_between
from unraze.loss import four_variable, reduced, weighted
from unraze.nn.layers import blocks_of, draw_outside_of_graphs, place, recompute
from unraze.process import destroy_at, like
from unraze.ranks import ALONE, Ranks
from unraze.schedule import Schedule
from unraze.sharded import whole

__all__ = [
    "Trainee",
    "begin",
    "clip",
    "divides",
    "gradients",
    "kept_for_gradients",
    "network_of",
    "plain",
    "reproducible",
]


@dataclass(frozen=True)
class Trainee:
    """What a training step works on: the network, its optimiser and average, and the data.

    `teacher` is the network that a distilled run is taught by, never changed; else None. `clusters`
    are what the network is told where they are its classes: then `images` are labelled by them.
    `together` is what keeps the network the same on all `ranks` where there are several.
    """

    config: Config
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    schedule: Schedule
    images: Images
    num_classes: int
    teacher: nn.Module | None = None
    clusters: Clusters | None = None
    ranks: Ranks = ALONE
    together: nn.Module | None = None

    @property
    def is_divided(self) -> bool:
        """Whether each rank has a part of the weights alone."""
        return divides(self.config, self.ranks)

    @property
    def forward(self) -> nn.Module:
        """What a step calls."""
        return self.network if self.together is None else self.together


def divides(config: Config, ranks: Ranks) -> bool:
    """Whether these ranks divide the weights; one alone has all of them."""
    return config.train.shard and ranks.count > 1


def network_of(config: Config, num_classes: int) -> nn.Module:
    assert config.data.size is not None
    assert config.data.channels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(config.train.seed, "weights"))
        network = networks.build(
            config.network,
            channels=config.data.channels,
            size=config.data.size,
            num_classes=num_classes,
            self_conditioning=config.loss.self_conditioning,
            learned_variance=config.loss.variance == "learned",
            augment_values=augment.VALUES if config.data.augment else 0,
        )
    if config.train.recompute:
        recompute(network)
    return network


TABLES = ("conditioning.table.weight", "class_embedding.weight")
"""What the tables of classes of the networks are called, of which one has one."""
AUGMENTATION = "conditioning.augmentation"
"""What a network knows of changed images by; it begins at zero."""


def _table(network: nn.Module) -> nn.Embedding:
    name = next(name for name, _ in network.named_parameters() if name in TABLES)
    table = network.get_submodule(name.removesuffix(".weight"))
    assert isinstance(table, nn.Embedding)
    return table


def begin(
    config: Config,
    images: Images,
    weights: Mapping[str, Tensor] | None = None,
    clusters: Clusters | None = None,
    ranks: Ranks = ALONE,
) -> Trainee:
    """Everything as it is before the first step, with the weights that it begins with if any, as a
    distilled run with its teacher's; a table of classes that is not among them begins anew. To be
    called by all ranks at once.

    Where these are not given, a distilled run has the teacher that a network without training is,
    which is enough to measure how long a step takes.
    """
    if clusters is not None:
        images = labelled(images, clusters)
    told = config.train.classes or clusters is not None
    num_classes = len(images.class_names) if told else 0
    network = network_of(config, num_classes)
    if clusters is not None:
        table = _table(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.torch_seed(config.train.seed, "clusters in the network"))
            place(table, torch.from_numpy(clusters.centres))
    network = network.to(config.train.device)
    if weights is not None:
        anew = {*TABLES, AUGMENTATION} - weights.keys()
        own = {k: v for k, v in network.state_dict().items() if k in anew}
        network.load_state_dict({**weights, **own})
    teacher = None
    if config.distilled is not None:
        teacher = copy.deepcopy(network).eval().requires_grad_(False)
    is_divided = divides(config, ranks)
    if is_divided:
        _divide(network, config.train.device, ranks)
    if config.train.compile:
        draw_outside_of_graphs(network)
        network.compile(dynamic=False)
    trainee = Trainee(
        config=config,
        network=network,
        optimizer=optim.build(network, config.train),
        average=ema.start(network),
        schedule=schedules.from_config(config.schedule),
        images=images,
        num_classes=num_classes,
        teacher=teacher,
        clusters=clusters,
        ranks=ranks,
        together=None if ranks.count == 1 or is_divided else _together(network),
    )
    if trainee.together is not None:
        # DDP lays its buckets anew after the first step, and sums depend on how they lie: one that
        # is thrown away makes the first step of a resumed run the same as any other's
        with warnings.catch_warnings():
            # of a filter of 1 x 1 two ways to lie are the same way
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            gradients(trainee, 1)
        trainee.optimizer.zero_grad(set_to_none=True)
    return trainee


def _divide(network: nn.Module, device: str, ranks: Ranks) -> None:
    """Leaves each rank its part of every weight; a block's are gathered while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for p in network.parameters():
        p.data = p.data.contiguous()  # channels-last ones cannot be divided
    mesh = init_device_mesh(torch.device(device).type, (ranks.count,))
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _together(network: nn.Module) -> nn.Module:
    # buffers are constants: they need not be sent at each step
    return DistributedDataParallel(network, forward_sync_buffers=False)


def _unheard(seconds: float) -> None:
    """What is told to nobody."""


def gradients(
    trainee: Trainee, step: int, *, computed: Callable[[float], None] = _unheard
) -> float:
    """Leaves the gradient of step `step` in the network and returns its mean loss.

    Each rank computes that of its share of the batch, in `train.accumulate` parts; with that of the
    last part the gradients of all are summed, and so are the losses. `computed` is told the seconds
    that this rank took until then.
    """
    began = moment(trainee.config.train.device)
    config, ranks = trainee.config, trainee.ranks
    whole = config.train.batch
    share = ranks.share(whole)
    parts = _parts(share, config.train.accumulate)
    images, count = trainee.images, len(trainee.images.pixels)
    indices, flips = samples_of(config.train, count, step, flip=config.data.flip, places=share)
    t = times_of(config.train, config.loss, trainee.schedule, step)
    second_look = (
        config.loss.self_conditioning
        and trainee.teacher is None  # a jump is taken at first sight
        and looks_twice(config.train, step)
    )
    labels = None
    if trainee.num_classes and images.labels is not None:
        labels = labels_of(config.train, images.labels[indices], trainee.num_classes, step)
    changes = None
    if p := config.data.augment:
        assert p != "auto"  # train() has asked
        assert config.data.size is not None
        changes = augmentation_of(config.train, p, config.data.size, step)
    trainee.network.train()
    trainee.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for places in parts:
        window = slice(places.start, places.stop)
        x0 = assemble(images, indices[window], None if flips is None else flips[window])
        told = None
        if changes is not None:
            x0 = augment.augmented(x0, changes[window])
            told = changes[window].to(x0.dtype).to(config.train.device)
        if config.network.dropout > 0:
            seed_dropout(trainee.network, config.train, step, places)
        with _summing(trainee, places is parts[-1]):
            losses = _losses(
                trainee,
                x0.to(config.train.device),
                t[window],
                places,
                step,
                classes=None if labels is None else labels[window].to(config.train.device),
                augmentation=told,
                second_look=second_look,
            )
            # the mean over ranks of these is the mean over the batch
            loss = losses.sum() / (whole / ranks.count)
            ready = moment(trainee.config.train.device)
            loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    computed(seconds_between(began, ready))
    return ranks.total(total) / ranks.count


def _parts(share: range, count: int) -> list[range]:
    """The places of a share in so many parts, as even as can be."""
    ends = [share.start + k * len(share) // count for k in range(count + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def _summing(trainee: Trainee, now: bool) -> AbstractContextManager[None]:
    """What is computed in this context is summed over the ranks, or kept for when it is."""
    if trainee.is_divided:
        divided: Any = trainee.network
        divided.set_requires_gradient_sync(now)
    if now or not isinstance(trainee.together, DistributedDataParallel):
        return nullcontext()
    return trainee.together.no_sync()


def plain(trainee: Trainee, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of its own with these weights, whole where they are divided; by all ranks at
    once."""
    if trainee.is_divided:
        network = network_of(trainee.config, trainee.num_classes).to(trainee.config.train.device)
    else:
        network = copy.deepcopy(trainee.network)
    own = network.state_dict()
    for name, value in weights.items():  # one at a time: all of them gathered are as much again
        own[name].copy_(whole({name: value})[name])
    return network


def kept_for_gradients(
    network: nn.Module, config: Config, at_once: int | None = None, *, num_classes: int = 0
) -> int:
    """Bytes of what a step's forward pass keeps for its backward pass, of `at_once` images, or as
    many as one process has at once, which are told of so many classes.

    Counted, not measured: `network` is one of the device "meta", which holds shapes alone. Weights
    are left out; under bfloat16 every value is taken to have two bytes.
    """
    assert config.data.size is not None
    part = at_once or -(-config.train.batch // config.train.accumulate)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[id(storage)] = storage
        return x

    with torch.device("meta"):
        x, t = torch.empty(part, config.data.channels or 1, *config.data.size), torch.empty(part)
        told = {"classes": torch.zeros(part, dtype=torch.long)} if num_classes else {}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(x, t, **told)
    weights = {id(p.untyped_storage()) for p in network.parameters()}
    total = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    return total // 2 if config.train.dtype == "bfloat16" else total


def _losses(
    trainee: Trainee,
    x0: Tensor,
    t: Tensor,
    places: Sequence[int],
    step: int,
    *,
    classes: Tensor | None,
    augmentation: Tensor | None,
    second_look: bool,
) -> Tensor:
    """One number an image: the objective of the configuration, per value."""
    config, schedule = trainee.config, trainee.schedule
    sigma_data = config.loss.sigma_data or 1.0
    parametrisation = config.loss.parametrisation
    seed, shape, values = config.train.seed, x0.shape[1:], x0[0].numel()
    eps = rng.normal(seed, "noise", places, step, shape).to(x0.device)

    def emit(x_t: Tensor, times: Tensor, previous: Tensor | None = None) -> Tensor:
        with _autocast(config):
            return raw_output(
                trainee.forward,
                schedule,
                parametrisation,
                x_t,
                times,
                sigma_data=sigma_data,
                classes=classes,
                augmentation=augmentation,
                previous=previous,
            )

    def estimate(x_t: Tensor, times: Tensor) -> Tensor:
        if not second_look:
            return emit(x_t, times)
        with torch.no_grad():
            raw = emit(x_t, times)
            first = predict(parametrisation, raw, x_t, schedule, times, sigma_data=sigma_data)
        return emit(x_t, times, first.x0)

    match config.loss.objective:
        case "four-variable":
            eps_step = rng.normal(seed, "step noise", places, step, shape).to(x0.device)
            return four_variable(estimate, schedule, x0, t.long(), eps, eps_step) / values
        case "reduced":
            return reduced(estimate, schedule, x0, t.long(), eps) / values
        case "weighted":
            x_t = destroy_at(*schedule.at(t), x0, eps)
            raw = estimate(x_t, t)
            prediction = predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)
            losses = weighted(prediction, x0, eps, schedule, t, config.loss, sigma_data=sigma_data)
            if prediction.share is None:
                return losses
            # L_hybrid = L + λ T L_t in bits a dimension, the mean left to L alone: Nichol &
            # Dhariwal 2021, arXiv:2102.09672, eq. 16
            nats = unit_step(schedule, x0, t, prediction.x0.detach(), prediction.share)
            more = config.loss.variance_weight * schedule.steps * bits(nats, values)
            return losses + more.to(losses.dtype)
        case "consistency":
            return _jumps(
                trainee, x0, eps, t, places, step, classes=classes, augmentation=augmentation
            )
        case _:
            assert_never(config.loss.objective)


def _jumps(
    trainee: Trainee,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    places: Sequence[int],
    step: int,
    *,
    classes: Tensor | None,
    augmentation: Tensor | None,
) -> Tensor:
    """`unraze.consistency` of each image: x_r is the teacher's step from x_t, the target the jump
    from there of the network as it is, with the same neurons dropped. Both are clipped, for what
    they estimate are images, whichever way the teacher is sampled. All are told how the images
    were changed, for their teacher knows changed ones too."""
    config, schedule = trainee.config, trainee.schedule
    assert trainee.teacher is not None

    def said(network: nn.Module, labels: Tensor | None) -> Denoiser:
        return denoiser(
            network,
            schedule,
            config.loss.parametrisation,
            sigma_data=config.loss.sigma_data or 1.0,
            classes=labels,
            augmentation=augmentation,
        )

    student, teacher = said(trainee.forward, classes), said(trainee.teacher, classes)
    if config.loss.teacher_guidance != 1 and classes is not None:
        nothing = said(trainee.teacher, torch.full_like(classes, trainee.num_classes))
        last = float(schedule.times[-1])
        low, high = config.loss.teacher_interval
        scale, interval = config.loss.teacher_guidance, (low * last, high * last)
        teacher = guided(teacher, nothing, scale, interval=interval)
    r, e = below(schedule, t, config.loss)
    x_t = destroy_at(*schedule.at(t), x0, eps)
    with torch.no_grad(), _autocast(config):
        x_r = jump(schedule, clipped(teacher, schedule)(x_t, t), r)
        target = jump(schedule, clipped(student, schedule)(x_r, r), e)
        target = torch.where(like(r, x_r) == like(e, x_r), x_r, target)
    with _autocast(config):
        prediction = student(x_t, t)
    return consistency(jump(schedule, prediction, e), target, schedule, t, e)


def clip(trainee: Trainee) -> float:
    bound = trainee.config.train.clip
    parameters = list(trainee.network.parameters())
    if bound == 0:
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
    else:
        norm = torch.nn.utils.clip_grad_norm_(parameters, bound)
    return float(whole({"": norm})[""])


def _autocast(config: Config) -> Any:
    if config.train.dtype != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(config.train.device).type, dtype=torch.bfloat16)


@contextmanager
def reproducible(config: TrainConfig) -> Iterator[None]:
    """Deterministic algorithms, the run's threads; all as before afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(config.threads or threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
