"""Loads of adapters in threads: their order, and what they leave alone."""

import threading
from pathlib import Path

import torch

from octavo_runtime.lora.adapter import LoRAAdapter
from octavo_runtime.lora.loads import AdapterLoads, Load


def load(name: str, path: str = "p") -> Load:
    return Load(name=name, path=Path(path))


def test_loads_of_one_name_end_in_order_and_hold_up_no_other() -> None:
    gates = {path: threading.Event() for path in ("first", "second", "other")}
    ended = threading.Semaphore(0)

    def read(name: str, path: Path) -> LoRAAdapter:
        assert gates[path.name].wait(60)
        return LoRAAdapter(name, path.name, 1, {})

    loads = AdapterLoads(read, ended.release)
    for name, path in (("a", "first"), ("a", "second"), ("b", "other")):
        loads.start(load(name, path))
    order = []
    gates["second"].set()
    for path in ("other", "first"):
        gates[path].set()
        assert ended.acquire(timeout=60)
        order += [read.result().version for _, read in loads.take_done()]
    assert ended.acquire(timeout=60)
    order += [read.result().version for _, read in loads.take_done()]

    assert order == ["other", "first", "second"]
    assert not loads.has_done
    assert not loads.wait()
    loads.close()


def test_a_load_that_fails_tells_its_error_and_the_next_one_goes_on() -> None:
    def read(name: str, path: Path) -> LoRAAdapter:
        if path.name == "broken":
            raise ValueError("broken")
        return LoRAAdapter(name, "1", 1, {})

    loads = AdapterLoads(read, lambda: None)
    loads.start(load("a", "broken"))
    loads.start(load("a"))
    results = []
    while loads.wait():
        results += [read.exception() or read.result().name for _, read in loads.take_done()]
    loads.close()

    assert [str(result) for result in results] == ["broken", "a"]


def test_reading_uses_one_core_and_leaves_the_others_to_all_other_threads() -> None:
    num_threads = torch.get_num_threads()
    seen: dict[str, int] = {}
    torch.set_num_threads(2)
    try:

        def read(name: str, path: Path) -> LoRAAdapter:
            seen["loader"] = torch.get_num_threads()
            return LoRAAdapter(name, "1", 1, {})

        loads = AdapterLoads(read, lambda: None)
        loads.start(load("a"))
        loads.wait()
        later = threading.Thread(target=lambda: seen.update(later=torch.get_num_threads()))
        later.start()
        later.join()
        seen["own"] = torch.get_num_threads()
        loads.close()
    finally:
        torch.set_num_threads(num_threads)

    assert seen == {"loader": 1, "later": 2, "own": 2}
