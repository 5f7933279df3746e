"""The model that learns: adapters in the forward pass, float32 masters in the optimizer, a merged copy that samples.

`Policy` bundles the three copies a step needs and the two scores of a completion (adapter on = policy, adapter
off = reference). Left out on purpose: a second reference model, gradient checkpointing (it would switch the cache
off while sampling), quantisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import torch

from polylib import models, run
from polylib.models import sealed
from polylib.models.likelihood import last_hidden
from polylib.models.packing import Packed, completion_logprobs


class Policy:
    """A LoRA policy on a frozen base, its parents' adapters merged into the base.

    `masters` maps "<layer>.lora_A|B" to float32 parameters. The forward pass uses them rounded to the model's
    dtype: small updates are not lost in bfloat16, and no layer has to cast its input.
    """

    def __init__(self, cfg_model, parents: list[Path], seed: int):
        self.cfg_model = cfg_model
        self.tokenizer = models.load_tokenizer(cfg_model)
        plain = models.load_model(cfg_model, parents)
        self.sampler = models.sampling_copy(plain)
        self.model = models.add_lora(plain, cfg_model, seed)
        self.head = models.Head(plain)
        self.critic = None  # a value head with parameters and masters here: rivals.ppo.Critic
        self.params = lora_weights(self.model)
        self.masters = {
            name: p.detach().float().clone().requires_grad_() for name, p in self.params.items()
        }

    @property
    def device(self) -> torch.device:
        return self.model.device

    def logprobs(
        self,
        packed: Packed,
        temperature,
        reference: bool = False,
        kept: torch.Tensor | None = None,
        value: Callable | None = None,
        critic: Callable | None = None,
    ):
        """log π of every packed completion token, (B, N, T) float32; `reference=True` scores with adapters off.

        `kept` and `value` as in `completion_logprobs`. Give policy and reference the same `kept`: their KL is then
        that between the two restricted to the tokens that could be sampled (cut to a set of its own, the reference
        would make it infinite). It is not the KL of the whole softmaxes. With `critic`, a function of (hidden states
        (B, L, d), packed), the result is a pair: log π as without it, and what the critic says of the same pass.
        """
        with self.model.disable_adapter() if reference else nullcontext():
            hidden = last_hidden(self.model.get_base_model(), packed)
            found = completion_logprobs(
                hidden, self.head, packed, temperature, kept=kept, value=value
            )
            return found if critic is None else (found, critic(hidden, packed))

    def collect_gradients(self, accelerator) -> None:
        """Move gradients from the forward parameters to the masters, averaged over processes."""
        for name, param in self.params.items():
            grad = (
                torch.zeros_like(self.masters[name]) if param.grad is None else param.grad.float()
            )
            self.masters[name].grad = accelerator.reduce(grad, "mean")
            param.grad = None

    @torch.no_grad()
    def sync_weights(self) -> None:
        """After an optimizer step: round the masters into the forward parameters and the merged copy that samples."""
        for name, param in self.params.items():
            param.copy_(self.masters[name])
        models.refresh_sampling_copy(self.sampler, self.model)


def lora_weights(model) -> dict[str, torch.nn.Parameter]:
    """The trained parameters of a PEFT model, under the names of our adapter files: "<layer>.lora_A|B"."""
    weights = {}
    for name, layer in models.lora_layers(model):
        weights[f"{name}.lora_A"] = layer.lora_A["default"].weight
        weights[f"{name}.lora_B"] = layer.lora_B["default"].weight
    return weights


def save_state(folder: Path, policy: Policy, optimizer, scalars: dict) -> None:
    """Everything a killed run needs, in one file with its checksum: masters, optimizer moments, torch RNG, scalars
    (`step` and `marks` among them). The checkpoint before stays, those of other runs and older ones go."""
    tensors = {f"master.{name}": tensor for name, tensor in policy.masters.items()}
    for name, tensor in policy.masters.items():
        for key, value in optimizer.state.get(tensor, {}).items():
            tensors[f"adam.{key}.{name}"] = torch.as_tensor(value)
    tensors["rng.torch"] = torch.get_rng_state()
    mine = f"state-{_mark(scalars['marks'])}-"
    sealed.write(folder / f"{mine}{scalars['step']:08d}.safetensors", tensors, scalars)
    kept = [file for file in _states(folder) if file.name.startswith(mine)][:2]
    for file in _states(folder):
        if file not in kept:
            file.unlink(missing_ok=True)


def load_state(folder: Path, policy: Policy, optimizer, marks: dict[str, str]) -> dict | None:
    """Restore the last checkpoint with these `marks` that is whole, and return its scalars; None where there is none.

    A damaged file is set aside. If all there is has other marks, one line says which: it is not resumed.
    """
    others = []
    for file in _states(folder):
        try:
            tensors, scalars = sealed.read(file)
        except FileNotFoundError:  # set aside by another process of this run
            continue
        except sealed.Damaged:
            run.set_aside(file, "the run goes on from the checkpoint before, or from step 0")
            continue
        if scalars["marks"] != marks:
            differ = ", ".join(k for k in marks if scalars["marks"].get(k) != marks[k])
            others.append(f"{file} belongs to a run with other {differ}: starting from step 0")
            continue
        with torch.no_grad():
            for name, master in policy.masters.items():
                master.copy_(tensors[f"master.{name}"])
                # as Adam keeps them: moments on the device, the step count on the CPU
                optimizer.state[master] = {"step": tensors[f"adam.step.{name}"]} | {
                    key: tensors[f"adam.{key}.{name}"].to(master.device)
                    for key in ("exp_avg", "exp_avg_sq")
                }
        torch.set_rng_state(tensors["rng.torch"])
        policy.sync_weights()
        return scalars
    for line in others[:1]:
        run.say(line)
    return None


def _states(folder: Path) -> list[Path]:
    """Checkpoints, the last step first."""
    return sorted(folder.glob("state-*.safetensors"), key=lambda f: f.stem[-8:], reverse=True)


def _mark(marks: dict[str, str]) -> str:
    return sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:12]
