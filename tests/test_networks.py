"""The contract of every row, the longhand references, and the equalities that the structure implies."""

from dataclasses import replace

import longhand
import pytest
import torch
import torch.nn.functional as F

from trailseg.config import NetworkOptions, Size
from trailseg.errors import OptionError
from trailseg.networks.build import build
from trailseg.networks.cores import CORES
from trailseg.networks.cost import cost
from trailseg.networks.norms import NORMS, SIZE_BOUND
from trailseg.networks.stems import STEMS
from trailseg.networks.table import NAMED, ROWS

SMALL = NetworkOptions(stem="x2", channels=8, depth=2, size=Size(16, 24))
SIZE_FREE = [norm for norm in NORMS if norm not in SIZE_BOUND]


def make(network="iterative-v6", *, classes=5, **options):
    torch.manual_seed(0)
    return build(replace(SMALL, network=network, **options), classes=classes)


def picture(*shape, seed=1, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def steps_of(network):
    return network.max_steps or 3


@pytest.mark.parametrize("name", ROWS)
def test_every_row_gives_logits_for_every_step_and_gradients_to_every_weight(name):
    network = make(name)
    steps = steps_of(network)
    logits = network(picture(2, 3, 16, 24), steps)
    assert logits.shape == (2, steps, 5, 8, 12)
    logits.square().sum().backward()
    blind = [n for n, p in network.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert blind == []


@pytest.mark.parametrize("name", ROWS)
def test_every_output_depends_on_the_image_at_initialisation(name):
    network = make(name)
    steps = steps_of(network)
    one, other = (network(picture(1, 3, 16, 24, seed=seed), steps)[0] for seed in (1, 2))
    for step in range(steps):
        scale = one[step].std()
        assert (one[step] - other[step]).abs().max() > 0.01 * scale


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (5, 7), (40, 9)])
def test_any_size_is_padded_and_cropped_back(name, size):
    network = make(name).eval()
    logits = network(picture(1, 3, *size), 1)
    assert logits.shape[-2:] == (-(-size[0] // 2), -(-size[1] // 2))
    whole = network.upsample(logits[0], size, (33, 50))
    assert whole.shape == (1, 5, 33, 50)


@pytest.mark.parametrize("name", [*NAMED, "gated"])
def test_the_recurrence_equals_the_one_written_out_longhand(name):
    network = make(name).double()
    with torch.no_grad():  # gates away from their first values, so that a swapped pair shows
        network.alpha.copy_(torch.linspace(0.7, 1.2, len(network.alpha)))
        network.beta.copy_(torch.linspace(0.3, 0.8, len(network.beta)))
    image = picture(2, 3, 16, 24, dtype=torch.float64)
    expected = getattr(longhand, name.replace("-", "_"))(network, image)
    same = torch.allclose if name == "gated" else torch.equal  # of a sigmoid there are several ways to compute
    assert same(network(image, 3), torch.stack(expected, 1))


@pytest.mark.parametrize("name", ROWS)
def test_fewer_steps_are_the_first_of_more(name):
    network = make(name)
    steps = steps_of(network)
    trail = network(picture(1, 3, 16, 24), steps)
    for k in range(1, steps + 1):
        assert torch.equal(network(picture(1, 3, 16, 24), k), trail[:, :k])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.cores in (1, 2) and row.max_steps is None])
def test_one_or_two_cores_take_any_number_of_steps(name):
    network = make(name)
    trail = network(picture(1, 3, 16, 24), 8)
    assert trail.shape[1] == 8
    assert trail.isfinite().all()


@pytest.mark.parametrize("name", ["iterative-v1", "iterative-v4", "iterative-v5", "gated", "2-own-residual"])
@pytest.mark.parametrize("prefix", [1, 3])
def test_after_a_prefix_come_the_later_logits_of_a_longer_run(name, prefix):
    network, image = make(name), picture(2, 3, 17, 23)
    assert torch.equal(network(image, 2, prefix), network(image, prefix + 2)[:, prefix:])
    assert network(image, 2, 0).shape == network(image, 2, prefix).shape == (2, 2, 5, 9, 12)


@pytest.mark.parametrize("name", ["iterative-v1", "iterative-v4", "iterative-v5", "iterative-v6"])
def test_no_gradient_flows_through_the_prefix(name):
    """The gradients are those of steps that begin at a state which is a constant."""
    network, image, prefix = make(name).double(), picture(2, 3, 16, 24, dtype=torch.float64), 2
    (network(image, 2, prefix) ** 2).sum().backward()
    got = {n: p.grad for n, p in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    context = network.encode(image)
    with torch.no_grad():
        state = network.step(1, context, network.step(0, context, None))
    loss = 0
    for t in (prefix, prefix + 1):
        state = network.step(t, context, state)
        loss = loss + (state.logits**2).sum()
    loss.backward()
    for n, p in network.named_parameters():
        assert (got[n] is None) == (p.grad is None), n
        assert p.grad is None or torch.equal(got[n], p.grad), n
    heard = {n for n, grad in got.items() if grad is not None and grad.any()}
    assert any(n.startswith("stem.") for n in heard) == (name in ("iterative-v1", "iterative-v4"))  # by the fuse alone
    assert any(n.startswith("cores.0.") for n in heard) == (len(network.cores) == 1)
    network.zero_grad(set_to_none=True)
    (network(image, prefix + 2)[:, prefix:] ** 2).sum().backward()
    assert any(not torch.equal(got[n], p.grad) for n, p in network.named_parameters() if got[n] is not None)


@pytest.mark.parametrize("name", ["hourglass", "res-hourglass-iter-ex", "single"])
def test_more_steps_than_cores_are_refused(name):
    network = make(name)
    with pytest.raises(OptionError, match=f"at most {network.max_steps}"):
        network(picture(1, 3, 16, 24), network.max_steps + 1)
    with pytest.raises(OptionError, match=f"steps={network.max_steps + 1}: .* at most {network.max_steps}"):
        network(picture(1, 3, 16, 24), network.max_steps, 1)
    with pytest.raises(OptionError, match="at least one"):
        network(picture(1, 3, 16, 24), 0)


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("hourglass", "1-none"),
        ("hourglass-iter", "iterative-v2"),
        ("hourglass-iter-ex", "iterative-v2"),
        ("res-hourglass", "iterative-v6"),
        ("res-hourglass-iter", "iterative-v4"),
        ("res-hourglass-iter-ex", "1-own-residual"),
        ("gated-stack", "gated"),
        ("iterative-v1", "iterative-v2"),
        ("iterative-v5", "iterative-v6"),
    ],
)
def test_cores_with_copied_weights_equal_the_one_they_were_copied_from(many, one):
    several, single = make(many).double(), make(one).double()
    with torch.no_grad():
        several.alpha.fill_(0.9)
        single.alpha.fill_(0.9)
        several.beta.fill_(0.4)
        single.beta.fill_(0.4)
    for part in ("stem", "head", "feedback"):
        getattr(several, part).load_state_dict(getattr(single, part).state_dict())
    if single.gate is not None:
        several.gate.load_state_dict(single.gate.state_dict())
    for core in several.cores:
        core.load_state_dict(single.cores[0].state_dict())
    for fuse in [*several.fuses, *single.fuses]:
        fuse.load_state_dict(single.fuses[0].state_dict())
    image = picture(1, 3, 16, 24, dtype=torch.float64)
    assert torch.equal(several(image, 3), single(image, 3))


def test_single_is_the_first_step_of_iterative_v6():
    single, refining = make("single"), make("iterative-v6")
    weights = {k: v for k, v in refining.state_dict().items() if not k.startswith(("feedback", "alpha", "beta"))}
    single.load_state_dict(weights | {"alpha": torch.empty(0), "beta": torch.empty(0)})
    image = picture(1, 3, 16, 24)
    assert torch.equal(single(image, 1), refining(image, 1))


def test_a_gate_at_zero_is_the_term_left_out():
    network = make("iterative-v6").double()
    image = picture(1, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        network.beta.zero_()
    trail = network(image, 2)
    with torch.no_grad():
        network.feedback.weight.add_(1)  # unheard
    assert torch.equal(network(image, 2), trail)
    with torch.no_grad():
        network.alpha.zero_()
        network.beta.fill_(1.0)
    forgetful = network(image, 2)
    x = network.feedback(forgetful[:, 0])  # the state is forgotten: only the feedback enters
    assert torch.equal(forgetful[:, 1], network.head(network.cores[0](x) + x))


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("core", CORES)
def test_every_stem_and_core(stem, core):
    network = make(stem=stem, core=core, size=(32, 32))
    scale = STEMS[stem].scale
    logits = network(picture(1, 3, 32, 32), 2)
    assert logits.shape == (1, 2, 5, 32 // scale, 32 // scale)
    transposed = any(isinstance(m, torch.nn.ConvTranspose2d) for m in network.modules())
    assert transposed == CORES[core]["transposed"]
    assert network.cores[0].merge.body[0].in_channels == 8 * (1 + CORES[core]["skips"])


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains(norm):
    network = make(norm=norm)
    logits = network(picture(2, 3, 16, 24), 2)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_step_norm_keeps_the_statistics_of_the_first_step_apart():
    network = make("gated", norm="step")
    merge = network.cores[0].merge.body[1]
    network(picture(2, 3, 16, 24), 3)
    assert (merge.first.num_batches_tracked, merge.later.num_batches_tracked) == (1, 2)
    network(picture(2, 3, 16, 24), 1)
    assert (merge.first.num_batches_tracked, merge.later.num_batches_tracked) == (2, 2)
    assert isinstance(network.stem[1], torch.nn.BatchNorm2d)  # the stem has one step only
    network.eval()
    before = network(picture(1, 3, 16, 24), 3)
    with torch.no_grad():
        merge.later.running_mean.add_(1)
    after = network(picture(1, 3, 16, 24), 3)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("norm", SIZE_FREE)
def test_size_free_norms_take_any_size(norm):
    assert make(norm=norm).eval()(picture(1, 3, 30, 50), 2).shape[-2:] == (15, 25)


@pytest.mark.parametrize("norm", SIZE_BOUND)
def test_size_bound_norms_refuse_another_size_and_say_which_fit(norm):
    network = make(norm=norm)
    assert network(picture(1, 3, 13, 24), 1).shape[-2:] == (7, 12)  # pads to the size it is bound to
    with pytest.raises(OptionError, match=r"30 x 50 .* heights of 9 to 16 and widths of 17 to 24.*norm=group"):
        network(picture(1, 3, 30, 50), 1)


def test_a_single_deepest_point_is_refused_where_its_variance_is_needed():
    with pytest.raises(OptionError, match="larger size"):
        make(norm="batch", size=(8, 8))
    assert make(norm="group", size=(8, 8))(picture(1, 3, 8, 8), 1).isfinite().all()


@pytest.mark.parametrize(("option", "value", "near"), [("network", "iterativ-v6", "iterative-v6"), ("stem", "x3", "x")])
def test_an_unknown_name_names_the_nearest(option, value, near):
    with pytest.raises(OptionError, match=f"{option}={value} is not known: did you mean '{near}"):
        make(**{option: value})


def test_the_hourglass_written_out_longhand():
    core = make(channels=8, depth=2, growth=1.5).cores[0].double()
    x = picture(1, 8, 8, 12, dtype=torch.float64)

    def block(b, x):
        y = b.body[4](b.body[3](F.leaky_relu(b.body[1](b.body[0](x)))))
        return F.leaky_relu(y + b.shortcut(x))

    half = block(core.down[1], F.max_pool2d(x, 2))
    quarter = block(core.inner.down[1], F.max_pool2d(half, 2))
    assert [t.shape[1] for t in (x, half, quarter)] == [8, 12, 16]  # 8, 12 and 18, in fours
    half = block(core.inner.merge, torch.cat([half, core.inner.up(quarter)], 1))
    assert torch.equal(core(x), block(core.merge, torch.cat([x, core.up(half)], 1)))


def test_the_gates_begin_with_the_state_and_a_little_feedback():
    network = make("res-hourglass")
    assert network.alpha.tolist() == [1.0, 1.0]
    assert network.beta.tolist() == pytest.approx([0.1, 0.1])


def test_padding_repeats_the_edge_and_is_cropped_from_the_far_side():
    network = make().double().eval()
    image = picture(1, 3, 13, 21, dtype=torch.float64)
    padded = F.pad(image, (0, 3, 0, 3), mode="replicate")
    assert torch.equal(network(image, 2), network(padded, 2)[..., :7, :11])


@pytest.mark.parametrize(("size", "to"), [((16, 24), (32, 48)), ((13, 21), (13, 21)), ((13, 21), (39, 63))])
def test_upsampling_keeps_every_feature_at_its_place(size, to):
    """Features that hold their own centre's place in the picture: between centres the answer is the pixel's place."""
    network = make()
    height, width = (-(-side // 2) for side in size)
    y, x = (torch.arange(n, dtype=torch.float64) for n in (height, width))
    logits = torch.stack(torch.meshgrid((2 * y + 1) / size[0], (2 * x + 1) / size[1], indexing="ij"))[None]
    got = network.upsample(logits, size, to)[0]
    for axis, (side, features) in enumerate(zip(to, (height, width), strict=True)):
        places = (torch.arange(side) + 0.5) / side
        first, last = 1 / size[axis], (2 * features - 1) / size[axis]
        inner = (places > first) & (places < last)
        assert inner.sum() > side / 2
        line = got[axis].movedim(axis, 0)[inner]
        torch.testing.assert_close(line, places[inner, None].expand_as(line).to(line), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "groups"), [("group", 4), ("layer", 1), ("instance", 8)])
def test_norms_take_their_statistics_over_what_their_names_say(norm, groups):
    x = 3 + 2 * picture(2, 8, 6, 5)
    parts = NORMS[norm](8, (6, 5))(x).view(2, groups, -1)
    torch.testing.assert_close(parts.mean(2), torch.zeros(2, groups), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.var(2, unbiased=False), torch.ones(2, groups), rtol=0, atol=1e-3)
    if groups < 8:  # and not over less
        assert NORMS[norm](8, (6, 5))(x).mean((2, 3)).abs().max() > 1e-2


def test_the_stem_has_the_weights_it_is_said_to_have():
    stem = make(stem="x4", channels=8).stem
    convolutions = 25 * (3 * 8 + 3 * 8 * 8) + 4 * 8
    assert sum(p.numel() for p in stem.parameters()) == convolutions + 4 * 2 * 8


def test_the_originals_cost():
    """docs/seed-deviations.md: the stem's 44.5 GMAC are met exactly; our core is a little smaller."""
    original = NetworkOptions(stem="x8", norm="layerHW", size=Size(384, 768))
    one, two, three = (
        cost(replace(original, network=name), classes=10) for name in ("iterative-v6", "iterative-v5", "res-hourglass")
    )
    assert round(one.macs_stem / 1e9, 1) == 44.5
    assert [round(c.parameters / theirs, 2) for c, theirs in ((one, 7.5e6), (two, 12.9e6), (three, 18.3e6))] == [
        0.94, 0.94, 0.94
    ]  # fmt: skip
    assert round(three.parameters / one.parameters, 2) == 2.43  # theirs: 2.45


def test_macs_are_counted_right():
    """A hand count: no depth to speak of, one 1x1 picture's worth of arithmetic at a time."""
    priced = cost(replace(SMALL, network="1-none", depth=1, growth=1.0, size=Size(4, 4)), classes=5)
    pixels = 4  # 2 x 2 features at stem x2
    stem = 16 * 25 * (3 * 8 + 8 * 8)
    down = 1 * 9 * (8 * 8 + 8 * 8)
    up = 1 * 4 * 8 * 8
    merge = pixels * (9 * (16 * 8 + 8 * 8) + 16 * 8)
    head, feedback = pixels * 8 * 5, pixels * 5 * 8
    assert (priced.macs_stem, priced.macs_step) == (stem, down + up + merge + head + feedback)
    with torch.no_grad():
        assert priced.parameters == sum(p.numel() for p in make("1-none", depth=1, growth=1.0).parameters())


@pytest.mark.parametrize("finer", [1, 2, 4])
def test_finer_logits_lie_where_their_features_lie(finer):
    """What a bright square in the corner of the picture changes is the corner of the logits, at their own scale."""
    network = make("gated", stem="s8", finer=finer, core="dilated", depth=1, size=(32, 48)).eval()
    assert (network.stride, network.scale) == (8, 8 // finer)
    dark, lit = torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48)
    lit[..., :4, -4:] = 1
    pictures = torch.cat([dark, lit])
    assert network(pictures, 2).shape == (2, 2, 5, 4 * finer, 6 * finer)
    logits = network.head(network.encode(pictures).features)  # a core spreads what it sees
    change = (logits[1] - logits[0]).abs().sum(0)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < finer
    assert column >= 5 * finer


def test_the_feedback_of_finer_logits_sees_all_of_them():
    network = make("gated", stem="x2", finer=2).double()
    state = network.step(0, network.encode(picture(1, 3, 16, 24, dtype=torch.float64)), None)
    assert state.logits.shape == (1, 5, 16, 24)
    logits = state.logits.detach().requires_grad_()
    network.feedback(logits).sum().backward()
    assert logits.grad.abs().min() > 0


@pytest.mark.parametrize("name", ["iterative-v4", "gated"])
def test_standardized_by_itself_a_picture_says_the_same_in_any_light_and_tint(name):
    shown = picture(2, 3, 16, 24, dtype=torch.float64)
    tint, haze = torch.tensor([[0.5, 0.7, 0.9], [0.6, 0.8, 0.5]], dtype=torch.float64)[:, :, None, None], 0.1
    own, data = (make(name, standardize=by).double() for by in ("picture", "data"))
    bright = own(shown, 2)
    torch.testing.assert_close(own(shown * tint + haze, 2), bright, rtol=0, atol=0.05)
    assert (data(shown * tint + haze, 2) - data(shown, 2)).abs().max() > 0.5
    torch.testing.assert_close(own(shown[1:], 2), bright[1:])  # whatever it is answered with
    means = own.standardize(shown).mean((2, 3))
    torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-9)
    assert own(torch.ones(1, 3, 16, 24, dtype=torch.float64), 2).isfinite().all()  # no deviation to divide by


def test_a_dilated_core_needs_no_halving_and_others_do():
    network = make(core="dilated", depth=0)
    assert network.multiple == 2
    assert network(picture(1, 3, 6, 10), 2).shape == (1, 2, 5, 3, 5)
    with pytest.raises(OptionError, match="depth=0: core=resunet needs a halving"):
        make(depth=0)
    with pytest.raises(OptionError, match="finer=4: stem=x2 makes the picture 2 times smaller"):
        make(finer=4)


def test_a_dilated_core_sees_far():
    """Without halvings: the reach of its dilations one after the other, 2 + 4 + 8 + 4 positions."""
    core = make(core="dilated", depth=0, channels=8, norm="batch").eval().cores[0].double()
    x = torch.zeros(1, 8, 41, 41, dtype=torch.float64, requires_grad=True)
    core[:-1](x)[0, :, 20, 20].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert (int(seen.nonzero().min()), int(seen.nonzero().max())) == (20 - 18, 20 + 18)
