"""A policy in a loop with Accelerate: mixed precision, gradient accumulation, several processes. The loaders are as in own_loop.py.

    handle = train(model, loader, validation, rl_skip.SkipConfig(budget=0.5), epochs=4)
    handle.save_pretrained("my-policy")
"""

import torch
from accelerate import Accelerator

import rl_skip


def train(model, loader, validation, config, epochs, learning_rate=5e-5, **options):
    """Trains a classifier and its policy together, and calibrates the policy; `options` are the Accelerator's."""
    accelerator = Accelerator(**options)
    handle = rl_skip.attach(model, config)
    optimizer = torch.optim.AdamW(handle.parameter_groups(learning_rate, weight_decay=0.01))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(loader))
    wrapped, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    wrapped.train()
    for epoch in range(epochs):
        for step, batch in enumerate(loader):
            with accelerator.accumulate(wrapped):
                loss = handle.loss(wrapped(**batch), batch["labels"], progress=(epoch + step / len(loader)) / epochs)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        accelerator.print(epoch, handle.metrics())
    handle.calibrate(validation, learn_from=loader)
    wrapped.eval()
    return handle
