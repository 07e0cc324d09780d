"""A server for a pack of texts: onnxruntime, NumPy and tokenizers, no PyTorch. One thread computes, on whatever requests have come in meanwhile.

    rl-skip export RUN my-pack --format onnx
    pip install numpy onnxruntime tokenizers
    python serve.py my-pack 8000
    curl localhost:8000 -d '{"text": "a film to fall asleep in", "budget": 0.5}'
"""

import importlib.util
import json
import queue
import sys
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

LARGEST_BATCH = 32
LONGEST = 128
"""Tokens after which a text is cut off where `tokenizer.json` names no number; it names that of the training."""


class Batcher:
    """Answers texts in batches: those that wait go together, each at a price of its own."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("run_pack", folder / "run_pack.py")
        runner = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runner)
        self.pack = runner.Pack(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if self.tokenizer.truncation is None:
            self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.no_padding()
        self.waiting = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def ask(self, text: str, budget: float | None = None) -> dict:
        """What the network says of a text; `budget` is the mean compute allowed for texts like it, None: that of the operating price."""
        price, answer = self.pack.price if budget is None else self.pack.price_for(budget), Future()
        self.waiting.put((self.tokenizer.encode(text).ids, price, answer))
        return answer.result()

    def work(self) -> None:
        """Takes what waits, at least one, and answers it."""
        while True:
            taken = [self.waiting.get()]
            while len(taken) < LARGEST_BATCH and not self.waiting.empty():
                taken.append(self.waiting.get())
            try:
                self.settle(taken)
            except Exception:  # one row can spoil the others' batch
                for one in taken:
                    try:
                        self.settle([one])
                    except Exception as error:  # whatever it is, who waits must hear of it
                        one[2].set_exception(error)

    def settle(self, taken: list[tuple[list[int], float, Future]]) -> None:
        """Answers rows in one batch."""
        said = self.answers([ids for ids, _, _ in taken], [price for _, price, _ in taken])
        for (_, _, answer), one in zip(taken, said, strict=True):
            answer.set_result(one)

    def answers(self, rows: list[list[int]], prices: list[float]) -> list[dict]:
        """Class, probability, layers and compute of each row of tokens."""
        longest = max(map(len, rows))
        mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows])
        padded = np.array([ids + [0] * (longest - len(ids)) for ids in rows])
        logits, routes, compute = self.pack({"input_ids": padded, "attention_mask": mask}, price=prices)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        classes = self.pack.about["classes"] or [str(number) for number in range(logits.shape[1])]
        return [
            {"class": classes[share.argmax()], "probability": float(share.max()), "layers": np.flatnonzero(route).tolist(), "compute": float(spent)}
            for share, route, spent in zip(shares, routes, compute, strict=True)
        ]


def serve(folder: Path, port: int) -> ThreadingHTTPServer:
    """The server, which answers once its `serve_forever` is called."""
    batcher = Batcher(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not isinstance(asked, dict) or not isinstance(asked.get("text"), str) or isinstance(asked.get("budget"), str):
                    raise ValueError('a request is {"text": a text}, with "budget", a number, where another than the usual compute is allowed')
                code, said = 200, batcher.ask(asked["text"], asked.get("budget"))
            except (TypeError, ValueError) as error:
                code, said = 400, {"error": str(error)}
            except Exception as error:  # of the runtime
                code, said = 500, {"error": str(error)}
            body = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    return Server(("localhost", port), Handler)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
