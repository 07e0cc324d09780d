"""At which updates a run reports, and at which it is validated."""

from dataclasses import dataclass

__all__ = ["EVALUATIONS", "POINTS", "Cadence"]

POINTS, EVALUATIONS = 50, 10
"""Of every curve, at the least, once the warm-up is over; a run with fewer updates than that has one at each."""
REPORTS_PER_EPOCH = 2


@dataclass(frozen=True)
class Cadence:
    """When a run reports and is validated: so many times an epoch, and oftener in a run of few epochs.

    Example:
        >>> cadence = Cadence(updates=1_100, warmup_updates=100, updates_per_epoch=500, eval_epochs=1)
        >>> cadence.report_every, cadence.validate_every
        (20, 100)
    """

    updates: int
    """Of the whole run."""
    warmup_updates: int
    updates_per_epoch: int
    eval_epochs: int
    """Epochs between two validations, at the most."""

    @property
    def joint_updates(self) -> int:
        """Those after the warm-up."""
        return self.updates - self.warmup_updates

    @property
    def report_every(self) -> int:
        """Updates between two points of a curve."""
        return max(min(self.updates_per_epoch // REPORTS_PER_EPOCH, self.joint_updates // POINTS or self.updates // POINTS), 1)

    @property
    def validate_every(self) -> int:
        """Updates between two validations."""
        return max(min(self.eval_epochs * self.updates_per_epoch, self.joint_updates // EVALUATIONS), 1)

    def reports(self, done: int) -> bool:
        """Whether a point is due after so many updates: at even distances, with each validation, and at the end."""
        return done % self.report_every == 0 or done == self.updates or self.validates(done)

    def validations(self, done: int) -> int:
        """How many there are up to so many updates: at even distances once the warm-up is over, and at the end of the training."""
        passed = max(done // self.validate_every - self.warmup_updates // self.validate_every, 0)
        return passed + (done == self.updates and done > self.warmup_updates and done % self.validate_every > 0)

    def validates(self, done: int) -> bool:
        """Whether a validation is due after so many updates."""
        return self.validations(done) > self.validations(done - 1)
