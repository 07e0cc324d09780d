"""A policy in a plain PyTorch loop. The loaders give batches of the model's arguments by name, labels among them.

    handle = train(model, loader, validation, rl_skip.SkipConfig(budget=0.5), epochs=4)
    handle.save_pretrained("my-policy")
"""

import torch

import rl_skip


def train(model, loader, validation, config, epochs, learning_rate=5e-5, teacher=None):
    """Trains a classifier and its policy together, and calibrates the policy; the model then routes its rows.

    A `teacher`, such as `copy.deepcopy(model).eval()` of a classifier that is trained already, costs its memory and a forward pass of each batch.
    """
    handle = rl_skip.attach(model, config)
    optimizer = torch.optim.AdamW(handle.parameter_groups(learning_rate, weight_decay=0.01))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model.train()
    for epoch in range(epochs):
        for batch in loader:
            with torch.no_grad():
                told = None if teacher is None else teacher(**batch).logits
            progress = schedule.last_epoch / schedule.T_max
            loss = handle.loss(model(**batch), batch["labels"], teacher_logits=told, progress=progress)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(epoch, handle.metrics())
    handle.calibrate(validation, learn_from=loader)
    model.eval()
    return handle
