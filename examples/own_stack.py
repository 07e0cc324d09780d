"""A stack of your own: the layers of an MLP-Mixer (Tolstikhin et al. 2021) in place of transformer blocks.

    python train.py --task digits --stack examples/own_stack.py:mixer --out runs/mixer
    python -m rl_skip eval runs/mixer --allow-code
    python -m rl_skip prune runs/mixer pruned --allow-code

Whoever has the exported folder alone gives the stack: rl_skip.load(folder, stack).
"""

from torch import Tensor, nn

from rl_skip import LayerStack, ModuleStack, NetworkConfig


def mlp(size: int, hidden: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


class MixerBlock(nn.Module):
    """An MLP over the tokens of each channel, then one over the channels of each token, (B, T, D) → (B, T, D)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_tokens, self.mix_channels = mlp(tokens, 2 * tokens), mlp(width, 2 * width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mix_tokens(self.norm_tokens(hidden).transpose(1, 2)).transpose(1, 2)
        return hidden + self.mix_channels(self.norm_channels(hidden))


def mixer(config: NetworkConfig, embed: nn.Module, tokens: int, classes: int) -> LayerStack:
    """What `--stack` names: a stack of `config.layers` layers between the task's own embedding and a head for its classes."""
    layers = [MixerBlock(tokens, config.width) for _ in range(config.layers)]
    head = nn.Sequential(nn.LayerNorm(config.width), nn.Flatten(), nn.Linear(tokens * config.width, classes))
    return ModuleStack(embed, layers, head, width=config.width, tokens=tokens)
