"""The commands: parse, call, show."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from comfyfleet.cli import cloud, config, models
from comfyfleet.cli.options import AsJson, ComfyUI, ConfigFile, TokenFile, Url, Workers

EPILOG = (
    "Exit codes: 0 done; 1 a run failed; 2 wrong input; 3 the fleet could not start; "
    "130 interrupted."
)

app = typer.Typer(
    name="comfyfleet",
    help="Run one ComfyUI workflow on every device you have.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config.app, name="config")
app.add_typer(cloud.app, name="cloud")
app.add_typer(models.app, name="models")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"comfyfleet {version('comfyfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of all commands."""


@app.command(epilog=EPILOG)
def run(
    workflow: Annotated[Path, typer.Argument(help="A workflow in API format (JSON).")],
    flags: Annotated[
        list[str] | None, typer.Argument(help="After --: flags of ComfyUI for the workers.")
    ] = None,
    count: Annotated[int, typer.Option(help="How often to run it, with other seeds.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first run; run i gets seed + i.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Set an input. Repeatable."),
    ] = None,
    workers: Workers = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in a folder; finished runs are not run again.")
    ] = False,
    comfyui: ComfyUI = None,
    config_file: ConfigFile = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="HOST[:PORT] of a Ray cluster's head (default: as set)."),
    ] = None,
    insecure_cluster: Annotated[
        bool, typer.Option("--insecure-cluster", help="Also one that asks for no token.")
    ] = False,
) -> None:
    """Run a workflow on all workers and save what it makes."""
    from comfyfleet.cli.configure import chosen_workers, read_config
    from comfyfleet.cli.run import run_command
    from comfyfleet.config import find_comfyui
    from comfyfleet.fleet import Host
    from comfyfleet.fleet.batch import Batch
    from comfyfleet.fleet.cluster import chosen_cluster

    batch = Batch.read(workflow, count=count, seed=seed, assignments=set_ or [])
    folder, found = find_comfyui(comfyui), read_config(config_file, comfyui)
    host = Host(
        comfyui=folder,
        flags=tuple(flags or ()),
        cwd=Path.cwd(),
        folders={name: folder / name for name in ("input", "output", "temp")},
        models=tuple(each for each in (folder / "models").glob("*") if each.is_dir()),
    )
    run_command(
        batch,
        host,
        out=out,
        resume=resume,
        workers=chosen_workers(workers, found),
        remotes=found.remotes(),
        cluster=chosen_cluster(found, cluster, insecure=insecure_cluster),
    )


ClusterToken = Annotated[
    Path | None,
    typer.Option(help="The file with the cluster's token (default: ~/.ray/auth_token)."),
]
CpuSlots = Annotated[int, typer.Option(min=0, max=256, help="How many workers on the CPU.")]


@app.command()
def head(
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Where it listens.")] = 6379,
    address: Annotated[
        str | None, typer.Option(help="This machine's address as others see it.")
    ] = None,
    token_file: ClusterToken = None,
    gpus: Annotated[int, typer.Option(min=0, help="How many of its GPUs the cluster gets.")] = 0,
    cpu_slots: CpuSlots = 0,
    comfyui: ComfyUI = None,
) -> None:
    """Start a cluster that other machines can join; stays until it is interrupted."""
    from comfyfleet.cli.join_cluster import start_head

    start_head(
        port=port,
        address=address,
        token_file=token_file,
        gpus=gpus,
        cpu_slots=cpu_slots,
        comfyui=comfyui,
    )


@app.command()
def join(
    to: Annotated[
        str, typer.Argument(metavar="URL|HEAD", help="A ComfyUI's address, or a cluster's head.")
    ],
    token: Annotated[
        str | None,
        typer.Option(help="URL: its token (default: COMFYFLEET_TOKEN, or as paired)."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="URL: what we are called there (default: as this machine).")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="URL: certificates (PEM) to trust, not the system's.")
    ] = None,
    url: Url = None,
    token_file: ClusterToken = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="HEAD: how many GPUs to offer (default: all).")
    ] = None,
    cpu_slots: CpuSlots = 0,
    comfyui: ComfyUI = None,
) -> None:
    """Offer this machine to a ComfyUI elsewhere, or to a cluster, until it is interrupted.

    To a ComfyUI: the one that runs here. To a cluster: this machine's devices.
    """
    if "://" in to:
        from comfyfleet.cli.join_url import join_url

        join_url(to, token=token, token_file=token_file, name=name, ca=ca, url=url)
        return
    from comfyfleet.cli.join_cluster import join_cluster

    join_cluster(to, token_file=token_file, gpus=gpus, cpu_slots=cpu_slots, comfyui=comfyui)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the fleets that run on this machine."""
    from comfyfleet.cli.status import show_status

    show_status(as_json=as_json)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two frames.")] = 1.0,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Watch what a ComfyUI's fleet does."""
    from comfyfleet.cli.top import show_top

    show_top(once=once, interval_s=interval, url=url, token_file=token_file)


@app.command()
def logs(
    worker: Annotated[str, typer.Argument(help="A worker, such as cuda1 or cpu-0.")],
    lines: Annotated[int, typer.Option(help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes.")] = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Show what a worker prints."""
    from comfyfleet.cli.logs import show_log

    show_log(worker, lines=lines, follow=follow, url=url, token_file=token_file)


@app.command()
def share(
    switch: Annotated[str, typer.Argument(metavar="on|off", help="Share the queue, or not.")],
    master: Annotated[
        bool | None,
        typer.Option("--master/--no-master", help="Does the master compute shared prompts too?"),
    ] = None,
    stagger: Annotated[
        float | None,
        typer.Option(min=0, max=86400, help="Seconds between two workers that load a model."),
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Let workers take prompts from a ComfyUI's own queue."""
    from comfyfleet.cli.control import share_queue

    share_queue(switch, master_computes=master, stagger_s=stagger, url=url, token_file=token_file)


@app.command()
def worker(
    worker: Annotated[str, typer.Argument(help="A worker, such as cuda1 or cpu-0, or all.")],
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="enable, disable, restart, interrupt or free.")
    ],
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Do something with a worker of a ComfyUI's fleet."""
    from comfyfleet.cli.control import change_worker

    change_worker(worker, action, url=url, token_file=token_file)


@app.command()
def pair(
    there: Annotated[
        str | None, typer.Argument(metavar="URL", help="The ComfyUI that shall be used.")
    ] = None,
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="What `comfyfleet pair` shows there.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What we are called there (default: this machine's name).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the token is kept (default: ComfyUI's user folder).")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Show a code for somebody else; or with URL and CODE, get a token of our own there."""
    from comfyfleet.cli.pair import get_token, show_code

    if there is None:
        show_code(url=url, token_file=token_file)
    else:
        get_token(there, code, name=name, out=out)


@app.command()
def tokens(
    action: Annotated[str, typer.Argument(metavar="list|revoke", help="What to do.")],
    name: Annotated[str | None, typer.Argument(help="revoke: who holds the token.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Show who holds a token of a ComfyUI's fleet, or take one back."""
    from comfyfleet.cli.pair import change_tokens

    change_tokens(action, name, url=url, token_file=token_file)


TokenEnv = Annotated[
    str | None,
    typer.Option(help="The environment variable with a token of yours that opens it too."),
]
OwnToken = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with a token of yours that opens it too."),
]
Behind = Annotated[
    str | None, typer.Option("--url", help="This machine's ComfyUI, if there are several.")
]


@app.command()
def serve(
    listen: Annotated[str, typer.Option(help="Where it listens; 0.0.0.0: everywhere.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On which port; 0: a free one.")
    ] = 8189,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Its certificate (PEM), to speak https.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
    token_file: OwnToken = None,
    token_env: TokenEnv = None,
    url: Behind = None,
    comfyui: ComfyUI = None,
) -> None:
    """Let others use this machine's ComfyUI, if they hold a token; until it is interrupted."""
    from comfyfleet.cli import serve as door

    found = door.Door(url=url, token_file=token_file, token_env=token_env, comfyui=comfyui)
    door.serve(found, listen=listen, port=port, tls_cert=tls_cert, tls_key=tls_key)


@app.command()
def tunnel(
    use: Annotated[
        str, typer.Option("--for", metavar="master|worker", help="What this ComfyUI shall be.")
    ] = "worker",
    timeout: Annotated[
        float, typer.Option(min=1, max=600, help="Seconds until it must have an address.")
    ] = 25.0,
    token_file: OwnToken = None,
    token_env: TokenEnv = None,
    url: Behind = None,
    comfyui: ComfyUI = None,
) -> None:
    """Let others use this machine's ComfyUI from the Internet by cloudflared, with a token."""
    from comfyfleet.cli.serve import Door
    from comfyfleet.cli.tunnel import open_tunnel

    door = Door(url=url, token_file=token_file, token_env=token_env, comfyui=comfyui)
    open_tunnel(door, use, timeout_s=timeout)


@app.command()
def doctor(
    workers: Workers = None,
    comfyui: ComfyUI = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, which devices there are and what would start on them."""
    from comfyfleet.cli.configure import chosen_workers, read_config
    from comfyfleet.cli.doctor import show_doctor

    chosen = chosen_workers(workers, read_config(config_file, comfyui))
    show_doctor(workers=chosen, comfyui=comfyui, as_json=as_json)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark; see docs/benchmarks.md.")],
    family: Annotated[str | None, typer.Option(help="sequence: the model family.")] = None,
    ranks: Annotated[int | None, typer.Option(help="sequence: how many ranks.")] = None,
    ulysses: Annotated[int | None, typer.Option(help="sequence: the Ulysses degree.")] = None,
    ring: Annotated[int | None, typer.Option(help="sequence: the ring degree.")] = None,
    runs: Annotated[int | None, typer.Option(help="chaos: how many runs.")] = None,
    seed: Annotated[int | None, typer.Option(help="chaos: the first run's seed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure, and print the figures; --json prints one JSON object as the last line."""
    from comfyfleet.cli.bench import run_benchmark

    given = {
        "family": family, "ranks": ranks, "ulysses": ulysses, "ring": ring, "runs": runs,
        "seed": seed,
    }  # fmt: skip
    options = {key: value for key, value in given.items() if value is not None}
    run_benchmark(name, options, as_json=as_json)
