"""LESA: the streamed basis is that of the SVD, the network learns as the authors' does, the plan can be written."""

import math

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.corpus import Workspace
from pipeline.expansion.base import Recipe
from pipeline.expansion.methods.fitting import Fitting
from pipeline.expansion.methods.latent import between, find_basis, fit, loss_of, project
from pipeline.expansion.methods.lesa import Lesa, matrix_kinds
from pipeline.expansion.source import read_source

QUICK = {"num_epochs": 1, "hidden": 16}
OURS = {"position": "interleaved", "num_groups": 2, "samples": "columns", "vectors": "mean", **QUICK}


def place(directory):
    return Workspace(None, None, directory, lambda **fields: None)


def settings(**changes):
    base = {"hidden": 256, "num_epochs": 5, "batch_size": 64, "lr": 1e-3, "norm_weight": 5e-5, "seed": 0}
    return Fitting(**{**base, **changes})


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (10, 10)])
@pytest.mark.parametrize("samples", ["rows", "columns"])
def test_the_streamed_basis_is_that_of_the_svd(shape, samples, tmp_path):
    """[W_1 ... W_L] = U S [V_1 ... V_L]: equal singular values, equal V, equal reconstructions of any coefficients."""
    torch.manual_seed(0)
    matrices = torch.randn(5, *shape)
    left, values, right = torch.linalg.svd(torch.cat(list(matrices), dim=1).double(), full_matrices=False)
    basis = find_basis(lambda block: matrices[block], 5, samples)
    scale = math.sqrt(5 * shape[1]) if samples == "columns" else 1.0
    torch.testing.assert_close(basis.scales.double() * scale, values, rtol=1e-5, atol=0)
    latent = project(basis, lambda block: matrices[block], 5, tmp_path / "c.bin")
    signs = (basis.left.double().T @ left).diagonal().sign()
    turned = (lambda v: v) if samples == "rows" else (lambda v: v.T)
    for block in range(5):
        v_block = right[:, block * shape[1] : (block + 1) * shape[1]] * signs[:, None]
        torch.testing.assert_close(turned(latent[block].double() / scale), v_block, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(basis.matrix(latent[block]), matrices[block], rtol=0, atol=1e-5)
    mixed = 0.3 * latent[1] + 0.7 * latent[2].flip(0)
    by_svd = (left * values * signs) @ turned(mixed.double() / scale)
    torch.testing.assert_close(basis.matrix(mixed).double(), by_svd, rtol=0, atol=1e-5)


def test_directions_that_no_matrix_has_are_left_out(tmp_path):
    """Matrices of rank 2: what is divided by a singular value of nothing would be noise."""
    torch.manual_seed(0)
    matrices = [torch.randn(8, 2) @ torch.eye(2, 6) for _ in range(2)]
    matrices[1] = matrices[0] @ torch.randn(6, 6)
    basis = find_basis(lambda block: matrices[block], 2, "rows")
    assert basis.left.shape == (8, 2)
    latent = project(basis, lambda block: matrices[block], 2, tmp_path / "c.bin")
    assert latent.shape == (2, 2, 6)
    torch.testing.assert_close(basis.matrix(latent[1]), matrices[1], rtol=1e-5, atol=1e-5)


def test_both_losses_by_hand():
    """MSE (9 + 0 + 0 + 81) / 4; norms 5 and 13 of the whole batch; 3 and 0, 4 and 13 of its two samples."""
    predicted, own = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 13.0]])
    rows = loss_of(predicted, own, settings(samples="rows", norm_weight=0.25))
    assert rows.item() == pytest.approx(0.75 * 22.5 + 0.25 * (5 - 13) ** 2)
    columns = loss_of(predicted, own, settings(samples="columns", norm_weight=0.25))
    assert columns.item() == pytest.approx(22.5 + 0.25 * (3**2 + 9**2) / 2)


def as_published(matrices, seed, num_epochs, batch_size):
    """The notebook's recipe with our order of samples: rows of V, [V1, V3] -> V2, the norm of the whole batch."""
    num_blocks, width = len(matrices), matrices[0].shape[1]
    left, values, right = torch.linalg.svd(torch.cat(list(matrices), dim=1), full_matrices=False)
    parts = right.split(width, dim=1)
    x = torch.cat([torch.cat([parts[i - 1], parts[i + 1]], dim=1) for i in range(1, num_blocks - 1)])
    y = torch.cat(parts[1:-1])
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(2 * width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(),
              torch.nn.Linear(8, width)]  # fmt: skip
    network, criterion = torch.nn.Sequential(*layers), torch.nn.MSELoss()
    optimizer, generator = torch.optim.AdamW(network.parameters(), lr=0.01), torch.Generator().manual_seed(seed)
    for _ in range(num_epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            out = network(x[index])
            norms = criterion(torch.norm(out, p=2), torch.norm(y[index], p=2))
            optimizer.zero_grad()
            ((1 - 0.05) * criterion(out, y[index]) + 0.05 * norms).backward()
            optimizer.step()
    with torch.no_grad():
        return [(left * values) @ network(torch.cat(parts[i : i + 2], dim=1)) for i in range(num_blocks - 1)]


def test_a_predicted_matrix_is_that_of_the_authors_recipe(tmp_path):
    """Signs of singular vectors are free: matrices are made such that the SVD and ours agree on them."""
    torch.manual_seed(0)
    matrices = torch.randn(5, 6, 9)
    wanted = as_published(matrices, 3, 40, 4)
    basis = find_basis(lambda block: matrices[block], 5, "rows")
    left = torch.linalg.svd(torch.cat(list(matrices), dim=1), full_matrices=False)[0]
    basis = type(basis)(basis.left * (basis.left * left).sum(0).sign(), basis.scales, "rows")
    latent = project(basis, lambda block: matrices[block], 5, tmp_path / "c.bin")
    fitting = settings(samples="rows", hidden=8, num_epochs=40, batch_size=4, lr=0.01, norm_weight=0.05, seed=3)
    network = fit(latent, fitting)
    for block, expected in enumerate(wanted):
        found = basis.matrix(between(network, latent[block], latent[block + 1]))
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)
        assert expected.norm() > 0.5 * matrices[block].norm()  # the norm term forces the size


def test_the_network_beats_the_mean_where_depth_has_a_pattern(tmp_path):
    """Coefficients turn with depth by a fixed angle a block: the mean of the neighbours is cos(angle) of the truth.

    The prediction is scored on columns that were not among those that it learned from.
    """
    torch.manual_seed(0)
    num_blocks, rank, angle = 12, 6, 0.9
    phase, size = 2 * math.pi * torch.rand(1200, rank), 0.5 + torch.rand(1200, rank)
    latent = torch.stack([size * torch.cos(phase + angle * block) for block in range(num_blocks)])
    network = fit(latent[:, :1000].contiguous(), settings(samples="columns"))
    below, truth, above = latent[4, 1000:], latent[5, 1000:], latent[6, 1000:]
    predicted = between(network, below, above)
    error, error_of_mean = (predicted - truth).square().mean(), ((below + above) / 2 - truth).square().mean()
    assert error < error_of_mean / 10


def test_training_repeats_bit_for_bit_and_follows_its_seed():
    latent = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    one, two, other = (fit(latent, settings(num_epochs=2, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's numbers are drawn
    weights = [[p.detach() for p in network.parameters()] for network in (one, two, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])


def test_the_norm_loss_pulls_norms_up():
    """Noise cannot be predicted, and the mean squared error alone makes predictions too short."""
    latent = torch.randn(4, 200, 6, generator=torch.Generator().manual_seed(1))
    networks = [fit(latent, settings(samples="columns", norm_weight=weight)) for weight in (0.0, 1.0)]
    short, long = (between(network, latent[0], latent[2]).norm() for network in networks)
    assert short < long < latent[1].norm() * 1.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_of_a_model_as_published(make_model, tmp_path, dtype):
    """One block in each gap of the top half; its matrices predicted, its norms and biases block 0's."""
    source = read_source(make_model(dtype, attention_bias=True))
    plan = Lesa(position="top_half", num_groups=None, **QUICK).plan(source, place(tmp_path))
    assert [(slot.source, slot.new) for slot in plan.stack] == [
        (0, False), (1, False), (1, True), (2, False), (2, True), (3, False),
    ]  # fmt: skip
    assert not plan.exact and plan.method == "lesa" and [b.position for b in plan.blocks] == [2, 4]
    made, stored = load_file(plan.made), load_file(source.directory / "model.safetensors")
    assert set(made) == {name for name, recipe in plan.recipes.items() if recipe.kind == "made"}
    assert len(made) == 2 * 7 and sorted(path.name for path in tmp_path.iterdir()) == ["made.safetensors"]
    for name, tensor in made.items():
        donor = stored[plan.recipes[name].source]
        assert tensor.shape == donor.shape and tensor.dtype == donor.dtype, name
        assert tensor.isfinite().all() and 0 < tensor.float().norm() < 4 * donor.float().norm(), name
    for rest in ("input_layernorm.weight", "self_attn.q_proj.bias"):
        assert plan.recipes[f"model.layers.4.{rest}"] == Recipe("copy", f"model.layers.0.{rest}")


def test_a_plan_of_a_model_with_our_options(make_model, tmp_path):
    plan = Lesa(**OURS).plan(read_source(make_model("float32", attention_bias=True)), place(tmp_path))
    assert [slot.source for slot in plan.stack if slot.new] == [1, 3]
    assert [position for position, slot in enumerate(plan.stack) if slot.new] == [2, 4]  # none above the last
    for rest in ("input_layernorm.weight", "self_attn.q_proj.bias"):
        assert plan.recipes[f"model.layers.4.{rest}"] == Recipe(
            "mean", f"model.layers.2.{rest}", others=(f"model.layers.3.{rest}",)
        )


def test_the_same_model_and_seed_give_the_same_bytes(make_model, tmp_path):
    source = read_source(make_model("bfloat16"))
    files = [Lesa(num_groups=2, seed=seed, **QUICK).plan(source, place(tmp_path / f"{n}")).made
             for n, seed in enumerate((0, 0, 1))]  # fmt: skip
    one, two, other = (file.read_bytes() for file in files)
    assert one == two != other


@pytest.mark.parametrize("samples", ["rows", "columns"])
def test_the_file_holds_what_the_network_gives_for_the_two_blocks_beside(make_model, tmp_path, samples):
    source = read_source(make_model("bfloat16", num_hidden_layers=5))
    lesa = Lesa(position="explicit", positions=[[1, 1], [3, 1]], samples=samples, **QUICK)
    plan = lesa.plan(source, place(tmp_path))
    made, stored = load_file(plan.made), load_file(source.directory / "model.safetensors")
    matrices = [stored[f"model.layers.{block}.mlp.up_proj.weight"].float() for block in range(5)]
    basis = find_basis(matrices.__getitem__, 5, samples)
    latent = project(basis, matrices.__getitem__, 5, tmp_path / "c.bin")
    network = fit(latent, settings(samples=samples, **QUICK))
    for position, below in ((2, 1), (5, 3)):
        expected = basis.matrix(between(network, latent[below], latent[below + 1])).bfloat16()
        assert torch.equal(made[f"model.layers.{position}.mlp.up_proj.weight"], expected)


def test_written_and_loaded(make_model, tmp_path):
    from pipeline.expansion.writer import write_expansion
    from pipeline.models import load

    source = read_source(make_model("bfloat16"))
    plan = Lesa(num_groups=2, **QUICK).plan(source, place(tmp_path / "scratch"))
    write_expansion(plan, source, tmp_path / "grown")
    model, made = load(tmp_path / "grown"), load_file(plan.made)
    assert len(model.model.layers) == 6
    assert all(torch.equal(parameter, made[n]) for n, parameter in model.named_parameters() if n in made)


def test_layouts_that_leave_no_neighbours_are_refused():
    Lesa(num_groups=3).check(6)
    for layout in ({"num_groups": 3, "per_group": 2}, {"num_groups": 6}, {"position": "suffix"}):
        with pytest.raises(ValueError, match="fewer groups than blocks"):
            Lesa(**layout).check(6)
    with pytest.raises(ValueError, match="the model has 2 blocks, not 3"):
        Lesa().check(2)
    with pytest.raises(ValueError, match="batch_size=0"):
        Lesa(num_groups=2, batch_size=0).check(6)
    with pytest.raises(ValueError, match="samples='cols' is not known; use one of rows, columns"):
        Lesa(num_groups=2, samples="cols").check(6)
    with pytest.raises(ValueError, match="vectors='zero' is not known"):
        Lesa(num_groups=2, vectors="zero").check(6)


def test_experts_are_refused(make_model):
    source = read_source(make_model("float32", model_type="mixtral", num_local_experts=4))
    with pytest.raises(ValueError, match=r"LESA is for dense blocks; found .*experts"):
        matrix_kinds(source)


def test_blocks_that_differ_are_refused(make_model):
    source = read_source(
        make_model(
            "float32", model_type="qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, decoder_sparse_step=2,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="blocks 0 and 1 differ in mlp"):
        matrix_kinds(source)
