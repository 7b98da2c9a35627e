"""Free ports, and the message where one is taken."""

import os
import socket

import pytest

from octavo.local.ports import free_ports, holder, is_free, require_free
from octavo_protocol.errors import ConfigError


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(8)

    assert len(set(ports)) == 8
    assert all(is_free("127.0.0.1", port) for port in ports)


def test_taken_port_is_explained_with_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert not is_free("127.0.0.1", port)
        with pytest.raises(ConfigError) as error:
            require_free("127.0.0.1", port)

    message = error.value.message
    assert f"port {port} is taken by" in message
    assert f"pid {os.getpid()}" in message
    assert f"--port {port + 1}" in message


def test_nobody_holds_a_free_port() -> None:
    assert holder(free_ports(1)[0]) is None


def test_unusable_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        is_free("no-such-host.invalid", 8000)
