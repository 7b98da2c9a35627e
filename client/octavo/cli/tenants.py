"""`octavo tenants`: keys for the file of tenants, and what is wrong with one."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from octavo_protocol.errors import ConfigError

app = typer.Typer(
    help="Make API keys for tenants of the router, and check the file that names them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_KEY_BYTES = 24


@app.command("new-key")
def new_key(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="Whose key it is.")],
    key_id: Annotated[
        str | None,
        typer.Option("--id", help="Name of the key in usage records. Default: of its hash."),
    ] = None,
) -> None:
    """Make a key; print it, this once, and the lines that the file of tenants needs for it.

    Nothing is stored: the file holds the key's hash, which leads to no key.
    """
    from octavo_router.tenancy.directory import key_hash
    from octavo_router.tenancy.tenants_file import parse_tenants

    key = f"octavo-{secrets.token_urlsafe(_KEY_BYTES)}"
    hashed = key_hash(key.encode())
    entry = f"{{id: {key_id}, hash: '{hashed}'}}" if key_id else f"'{hashed}'"
    lines = f"  - name: {name}\n    keys: [{entry}]\n"
    secret = secrets.token_hex(32)
    parse_tenants({"the new key": f"secret: {secret}\ntenants:\n{lines}".encode()})
    print(f"{key}\n\nThe key, shown this once. In the file of tenants, below `tenants:`\n\n{lines}")


@app.command()
def check(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The file of tenants, or the folder of them.")
    ],
) -> None:
    """Read a file of tenants as the router does; list who is in it, or what is wrong with it."""
    from octavo_router.tenancy.directory import load_directory
    from octavo_router.tenancy.usage_report import Row, as_table

    directory = load_directory(path)
    if not directory.tenants:
        raise ConfigError(f"{path} names no tenant; nobody could use the router")
    rows: list[Row] = [
        {
            "tenant": tenant.name,
            "keys": directory.num_keys(tenant),
            "models": ",".join(tenant.models),
            "weight": f"{tenant.weight:g}",
            "priority": str(tenant.priority),
            "limits": ",".join(tenant.limits.described()) or "none",
        }
        for tenant in directory.tenants
    ]
    print("\n".join(as_table(rows)))
    for alias in directory.aliases.values():
        targets = ", ".join(f"{each.model} ({each.weight:g})" for each in alias.targets)
        print(f"{alias.name} stands for {targets}")
    for prefix in directory.shared_prefixes:
        sharers = [*prefix.tenants, *(f"group {name}" for name in prefix.cache_groups)]
        print(f"the prefix {prefix.name} is shared by {', '.join(sharers)}")
