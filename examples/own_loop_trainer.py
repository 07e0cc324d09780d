"""A policy in transformers' Trainer. The data sets give rows, the model's arguments by name with labels, as the Trainer always has them.

    trainer = train(model, train_rows, validation_rows, rl_skip.SkipConfig(budget=0.5), "runs/mine", num_train_epochs=4)
    attached = rl_skip.attach(type(model).from_pretrained("runs/mine"), "runs/mine/policy")
"""

from transformers import TrainingArguments

import rl_skip


def accuracy(predicted):
    """The share that is right."""
    return {"accuracy": float((predicted.predictions.argmax(axis=1) == predicted.label_ids).mean())}


def train(model, train_rows, validation_rows, config, folder, data_collator=None, **options):
    """Trains a classifier and its policy together, keeps the best, calibrates the policy and saves both; `options` are of `TrainingArguments`."""
    rl_skip.attach(model, config)
    keep = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1, "load_best_model_at_end": True}
    keep["metric_for_best_model"] = "accuracy"
    arguments = TrainingArguments(folder, **keep, **options)
    trainer = rl_skip.SkipTrainer(model, arguments, data_collator, train_rows, validation_rows, compute_metrics=accuracy)
    trainer.train()
    trainer.calibrate()
    trainer.save_model()
    return trainer
