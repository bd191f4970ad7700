"""Gradients are clipped between the backward pass and the step, and no step is made of what is not a number."""

import ignite.distributed as idist
import pytest
import torch
from digar.training.gradients import SafeSteps
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn

from tests.training.tiny import EPOCHS, STEPS, Tiny, make_run

STEEP = torch.tensor([[3.0, 4.0]])  # the loss's gradient: of norm 5


def train_one_step(max_norm: float) -> tuple[torch.Tensor, SupervisedTrainer]:
    """How far one step of plain gradient descent at rate 1 moves the weights, and the trainer."""
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": STEEP, "label": torch.zeros(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda prediction, label: prediction.sum(),
        decollate=False,
        train_handlers=[SafeSteps(network, None, max_norm)],
    )
    trainer.run()
    return before - network.weight.detach(), trainer


def test_a_step_is_not_longer_than_the_largest_norm_and_keeps_its_direction():
    step, _ = train_one_step(max_norm=0.5)
    torch.testing.assert_close(step, STEEP / 10, rtol=1e-4, atol=1e-6)


def test_a_gradient_within_the_norm_is_not_changed():
    step, _ = train_one_step(max_norm=6.0)
    torch.testing.assert_close(step, STEEP, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 6.0])
def test_the_norm_before_clipping_is_kept_for_the_curves(max_norm):
    _, trainer = train_one_step(max_norm)
    assert trainer.state.gradient_norm == pytest.approx(5.0, rel=1e-5)


def test_the_norm_is_taken_over_all_weights():
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=nn.MSELoss(),
    )
    trainer.state.output = {"loss": torch.zeros(())}
    SafeSteps(network, None, max_norm=1.0)(trainer)
    assert trainer.state.gradient_norm == pytest.approx(4.0)  # of four weights, 2 each
    clipped = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-4)


# Steps that are not finite


def poison(run: Tiny, steps: set[int], where: str) -> None:
    """Make the loss or one gradient not a number in these steps."""

    def loss(engine: SupervisedTrainer) -> None:
        if engine.state.iteration in steps and where == "loss":
            engine.state.output["loss"] = engine.state.output["loss"] * float("nan")

    def gradient(parameter: torch.Tensor) -> None:
        if run.trainer.state.iteration in steps and where == "gradient":
            parameter.grad[0] = float("inf")

    run.trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, loss)
    run.network[0].weight.register_post_accumulate_grad_hook(gradient)


def fingerprint(run: Tiny) -> str:
    """Every weight, and all that the optimizer keeps of them."""
    return str([run.network.state_dict(), run.optimizer.state_dict()["state"]])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_before_it_is_made_and_names_its_files(where, tmp_path):
    run = make_run(tmp_path)
    poison(run, {6}, where)
    before = []
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=6), lambda engine: before.append(fingerprint(run)))
    with pytest.raises(FloatingPointError) as caught:
        run.trainer.run()
    assert [fingerprint(run)] == before
    message = str(caught.value)
    assert message.startswith("step 6 has the loss nan" if where == "loss" else "step 6 has the loss 1.")
    sampler = run.state.loader.sampler
    sampler.set_epoch(2)
    images = [str(run.state.loader.dataset.data[index]["image"]) for index in sampler.whole_epoch()[2:4]]
    assert f"its batch: {', '.join(images)}. Look at these files" in message
    assert "--nan_policy skip" in message


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were_and_the_next_is_made(where, tmp_path, caplog):
    run = make_run(tmp_path, nan_policy="skip")
    poison(run, {2, 3}, where)
    states = []
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: states.append(fingerprint(run)))
    run.trainer.run()
    assert run.trainer.state.iteration == EPOCHS * STEPS
    assert states[0] == states[1] == states[2]
    assert len(set(states[2:])) == EPOCHS * STEPS - 2
    assert "nan" not in states[-1]
    assert [record.message.split(" has ")[0] for record in caplog.records if "it is skipped" in record.message] == [
        "step 2",
        "step 3",
    ]


def test_more_than_so_many_skipped_steps_in_a_row_stop(tmp_path):
    run = make_run(tmp_path, nan_policy="skip")
    poison(run, {1, 2, 4, 6, 7, 8}, "loss")
    with pytest.raises(FloatingPointError, match="step 8 has the loss nan.*the step 3 times in a row"):
        run.trainer.run()


def test_a_process_skips_the_step_that_another_cannot_make(tmp_path, monkeypatch):
    run = make_run(tmp_path, nan_policy="skip")
    states = []
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: states.append(fingerprint(run)))
    monkeypatch.setattr(idist, "all_reduce", lambda value, op: max(value, int(run.trainer.state.iteration == 3)))
    run.trainer.run()
    assert states[1] == states[2] != states[3]


def test_another_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nan_policy is 'ignore': it must be stop or skip"):
        make_run(tmp_path, nan_policy="ignore")
