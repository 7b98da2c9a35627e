"""The process of a rank other than 0: does with its runner what rank 0 does with its own.

Started by `followers` as `python -m octavo_runtime.worker.follower DESCRIPTOR`, a socket's. It ends
when rank 0 closes that, when rank 0's process ends, or with exit status 1 when something fails.
"""

import gc
import logging
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import torch

from octavo_kernels.allocator import tune_allocator
from octavo_protocol.errors import ConfigError
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import Group, connect
from octavo_runtime.worker.model_runner import ModelRunner
from octavo_runtime.worker.rank import new_rank_runner
from octavo_runtime.worker.rank_messages import (
    Answer,
    Call,
    Done,
    Failed,
    Message,
    PutAdapter,
    Step,
    StepReader,
)
from octavo_runtime.worker.shared_adapter import AdapterShare

logger = logging.getLogger(__name__)


class Follower:
    """One rank's runner, and what it is told to do with it."""

    def __init__(self, config: ResolvedConfig, max_model_len: int, group: Group) -> None:
        model_config = ModelConfig.from_folder(config.model, config.hf_overrides)
        self._runner: ModelRunner = new_rank_runner(config, model_config, max_model_len, group)
        self._adapters = AdapterShare(self._runner, model_config, group)
        self._reader = StepReader()

    def obey(self, message: Message) -> Answer | None:
        """None: it is not to be answered."""
        match message:
            case Step():
                self._runner.launch(*self._reader.read(message))
            case PutAdapter(slot, lora_ranks):
                self._adapters.put(slot, lora_ranks)
            case Call(method, arguments):
                value = getattr(self._runner, method)(*arguments)
                if method == "drop_kv_cache":
                    self._reader = StepReader()
                return Done(value)
        return None


def use_device(rank: int, config: ResolvedConfig) -> None:
    """Takes this process' GPU, or as many threads as the configuration says."""
    if config.device == "cuda":
        torch.cuda.set_device(rank)
        torch.zeros(1, device="cuda")  # fails here, where nobody waits for this rank
    elif config.num_threads is not None:
        torch.set_num_threads(config.num_threads)


def join(rank: int, config: ResolvedConfig, store: Path) -> Group:
    """The group, once all ranks have joined it."""
    return connect(rank, config.tensor_parallel_size, torch.device(config.device), store)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what they mean
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    gc.freeze()  # what has been imported
    tune_allocator()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return serve(Connection(int(arguments[0])))


def serve(connection: Connection) -> int:
    """Obeys rank 0 until the connection's end. Exit status: 0 ended as told, 1 failed."""
    encoder = msgspec.msgpack.Encoder()
    decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
    try:
        rank, config, max_model_len, store = pickle.loads(connection.recv_bytes())
        use_device(rank, config)
        connection.send_bytes(encoder.encode(Done(None)))
        follower = Follower(config, max_model_len, join(rank, config, store))
        connection.send_bytes(encoder.encode(Done(None)))
        while True:
            answer = follower.obey(decoder.decode(connection.recv_bytes()))
            if answer is not None:
                connection.send_bytes(encoder.encode(answer))
    except (EOFError, ConnectionError):
        return 0
    except Exception as error:
        if isinstance(error, ConfigError):
            failed = Failed(error.message, is_config=True)
        else:
            logger.exception("a rank failed")
            failed = Failed(f"{type(error).__name__}: {error}", is_config=False)
        connection.send_bytes(encoder.encode(failed))
        return 1


def _end_with_rank_0() -> None:
    """At once, whatever this rank waits for."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    # Without destructors, which would wait for the other ranks.
    os._exit(main(sys.argv[1:]))
