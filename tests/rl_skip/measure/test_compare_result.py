"""What the figures are drawn from: run rates and flows against loops over single rows."""

import torch

from rl_skip.measure.compare.result import RoutesTaken


def test_run_rates_and_flow_equal_loops_over_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, depth, classes = 50, 5, 4
    route = torch.rand(rows, depth, generator=generator) < 0.5
    route[:, 0] = True
    labels = torch.randint(classes - 1, (rows,), generator=generator)  # the last class has no rows
    taken = RoutesTaken(route, labels, torch.ones(rows), route.float().mean(dim=1), labels)
    rate, flow = taken.run_rate(classes), taken.flow()
    expected = torch.zeros(depth, depth + 1, dtype=torch.long)
    for row in route.tolist():
        layers = [i for i, ran in enumerate(row) if ran]
        for here, there in zip(layers, [*layers[1:], depth], strict=True):
            expected[here, there] += 1
    assert torch.equal(flow, expected)
    for label in range(classes - 1):
        torch.testing.assert_close(rate[label], route[labels == label].float().mean(dim=0))
    assert (rate[classes - 1] == 0).all()
