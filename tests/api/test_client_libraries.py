"""The clients of openapi/clients: the programs of openapi/README.md, and copies of calls that change."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway import __version__
from tests.support.changing_simulator import PERIOD, changing
from tests.support.consumers import Member, keys_file
from tests.support.feed import LIST, START, listed
from tests.support.paths import NODE, ROOT
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand
from tests.support.tools import need, tool

CLIENTS = ROOT / "openapi" / "clients"
README = (ROOT / "openapi" / "README.md").read_text("utf-8")
SECTION = README.split("\n## Two small clients")[1].split("\n## ")[0]
PROGRAMS = dict(re.findall(r"```(py|typescript)\n(.*?)```", SECTION, re.DOTALL))
DASHBOARD = Member("dashboard")
# Follows a changing server, whose calls the test changes after each line that is read.
FOLLOWER = """
import { Client, type Copy } from "./callbutton-client.js";
import { createInterface } from "node:readline";

const client = new Client(process.argv[2]!);
const copy: Copy = new Map();
let since: string | undefined;
for await (const line of createInterface({ input: process.stdin })) {
  for await (const page of client.follow(copy, ["*"], { start: line, ...(since ? { since } : {}) })) {
    since = page.next;
    if (page.upToDate) break;
  }
  const calls = [...copy.values()].map((call) => [call.clientCode, call.id, call.extra["Edited"] ?? null]);
  console.log(JSON.stringify(calls));
}
"""


# Observes a list and a copy. For each line it prints the calls of the copy, and how often there was another Map.
OBSERVER = """
import { InfiniteQueryObserver, QueryClient, QueryObserver } from "@tanstack/react-query";
import { createInterface } from "node:readline";
import { Client, type Copy, ProblemError } from "./callbutton-client.js";
import { callsOptions, copyOptions, type Failure } from "./callbutton-query.js";

const [address, start] = process.argv.slice(2) as [string, string];
const [gateway, cache] = [new Client(address), new QueryClient()];

const list = new InfiniteQueryObserver(cache, callsOptions(gateway, ["*"], { start, limit: 500 }));
const stop = list.subscribe(() => {});
await list.refetch();
let pages = list.getCurrentResult();
while (pages.hasNextPage) pages = await list.fetchNextPage();
console.log(JSON.stringify(pages.data?.map((call) => [call.clientCode, call.id])));
stop();

const wrong = new QueryObserver(cache, copyOptions(gateway, ["*"], { start: "soon" }));
const error: Failure | null = (await wrong.refetch()).error;
if (!(error instanceof ProblemError)) throw error;
console.log(JSON.stringify([error.type, error.problem.errors?.[0]?.parameter, wrong.getCurrentResult().failureCount]));

const copies = new Set<Copy>();
const copy = new QueryObserver(cache, copyOptions(gateway, ["*"], { start }));
const end = copy.subscribe(({ data }) => data && copies.add(data));
for await (const _ of createInterface({ input: process.stdin })) {
  const calls = [...(copy.getCurrentResult().data?.values() ?? [])];
  const shown = calls.map((call) => [call.clientCode, call.id, call.extra["Edited"] ?? null]);
  console.log(JSON.stringify([copies.size, shown]));
}
end();
process.exit(0);
"""
# A component of the README with hooks, rendered with data that were fetched before.
RENDERED = """
import { QueryClientProvider } from "@tanstack/react-query";
import { renderToString } from "react-dom/server";
import { cache, Calls, gateway } from "./main.js";
import { callsOptions, copyOptions } from "./callbutton-query.js";

await cache.fetchInfiniteQuery(callsOptions(gateway, ["8005550100"], { start: "2026-11-16" }));
await cache.fetchQuery(copyOptions(gateway, ["8005550100"], { start: "2026-11-16" }));
console.log(renderToString(<QueryClientProvider client={cache}><Calls /></QueryClientProvider>));
process.exit(0);
"""


def python_client() -> Any:
    specification = importlib.util.spec_from_file_location("callbutton_client", CLIENTS / "callbutton_client.py")
    assert specification is not None
    assert specification.loader is not None
    module: ModuleType = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def expected_output(gateway: Stand) -> list[str]:
    calls = listed(gateway, LIST)
    connected = sum(call["result"] == "connected" for call in calls.values())
    return [str(connected), str(len(calls)), "/problems/invalid-parameter", "start"]


def program(name: str, gateway: Stand) -> str:
    address = str(gateway.client.base_url).rstrip("/")
    text: str = PROGRAMS[name].replace("http://127.0.0.1:8080", address).replace("YOUR-KEY", DASHBOARD.key)
    return text


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    one = stand(auth="keys", keys_file=str(keys_file(tmp_path, DASHBOARD)))
    one.client.headers["X-API-Key"] = DASHBOARD.key
    return one


def compiled(folder: Path, name: str, text: str) -> list[str]:
    """Compile a TypeScript program with the client, strictly. Returns the command that runs it."""
    binaries = NODE / "node_modules" / ".bin"
    need((binaries / "openapi-typescript").exists(), "npm ci in tests/node")
    for source in CLIENTS.glob("*.ts"):
        shutil.copy(source, folder)
    (folder / "node_modules").symlink_to(NODE / "node_modules")
    (folder / name).write_text(text, "utf-8")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node.d.ts").write_text(
        'declare const process: any; declare module "node:readline" '
        "{ export function createInterface(options: any): AsyncIterable<string>; }"
    )
    contract = str(ROOT / "openapi" / "openapi.yaml")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--skipLibCheck"]
    modern = ["--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--jsx", "react-jsx"]
    modules = ["--module", "nodenext", "--moduleResolution", "nodenext"]
    for command in (
        [str(binaries / "openapi-typescript"), contract, "-o", "schema.d.ts"],
        [str(binaries / "tsc"), *strict, *modern, *modules, name, "node.d.ts"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return [tool("node"), str((folder / name).with_suffix(".js"))]


def test_the_clients_belong_to_this_version_of_the_contract():
    for name in ("callbutton_client.py", "callbutton-client.ts"):
        found = re.search(r'CONTRACT = "(.*)"', (CLIENTS / name).read_text("utf-8"))
        assert found is not None
        assert found[1] == __version__


def test_the_python_program_of_the_readme_works(gateway: Stand, tmp_path: Path):
    (tmp_path / "main.py").write_text(program("py", gateway), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(CLIENTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == expected_output(gateway), done.stderr


def test_the_typescript_program_of_the_readme_works(gateway: Stand, tmp_path: Path):
    command = compiled(tmp_path, "main.ts", program("typescript", gateway))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == expected_output(gateway), done.stderr


def test_a_python_copy_follows_edits_and_deletions_and_is_repaired():
    client = python_client()
    copy: dict[tuple[str, str], Any] = {}

    async def follow(address: str, since: str | None) -> str:
        async with client.Client(address) as one:
            async for page in one.follow(copy, ["*"], start=START, since=since):
                if page["upToDate"]:
                    return str(page["next"])
        raise AssertionError("it does not end")

    with changing() as (stand, expected):
        address, token = str(stand.client.base_url), None
        for damage in (False, False, True, False):
            token = asyncio.run(follow(address, token))
            assert {key: call["extra"].get("Edited") for key, call in copy.items()} == expected()
            stand.pass_time(100 * PERIOD + PERIOD)
            if damage:
                copy.popitem()
        token = asyncio.run(follow(address, "a token of another key"))
        assert {key: call["extra"].get("Edited") for key, call in copy.items()} == expected()


def test_a_typescript_copy_follows_edits_and_deletions(tmp_path: Path):
    command = compiled(tmp_path, "follower.ts", FOLLOWER)
    with changing() as (stand, expected):
        address = str(stand.client.base_url)
        with subprocess.Popen(
            [*command, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(3):
                process.stdin.write(f"{START}\n")
                process.stdin.flush()
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                shown = {(code, id_): edited for code, id_, edited in json.loads(line)}
                assert shown == expected()
                stand.pass_time(100 * PERIOD + PERIOD)
            process.stdin.close()
            assert process.wait(60) == 0


def test_query_options_page_a_list_and_keep_a_copy_in_the_cache(tmp_path: Path):
    node, program_path = compiled(tmp_path, "observer.ts", OBSERVER)
    (tmp_path / "window.mjs").write_text("globalThis.window = globalThis;")  # without one, nothing is refetched
    with changing() as (stand, expected):
        command = [node, "--import", str(tmp_path / "window.mjs"), program_path, stand.address, START]
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, **pipes) as process:

            def line() -> Any:
                assert process.stdout is not None
                text = process.stdout.readline()
                assert text, process.communicate()[1]
                return json.loads(text)

            def shown() -> tuple[int, dict[tuple[str, str], str | None]]:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                copies, calls = line()
                return copies, {(code, id_): edited for code, id_, edited in calls}

            assert sorted(map(tuple, line())) == sorted(expected())
            assert line() == ["/problems/invalid-parameter", "start", 1]
            wait_for(lambda: shown()[1] == expected(), "the copy is complete")
            for _ in range(2):
                copies = shown()[0]
                stand.pass_time(100 * PERIOD + PERIOD)
                wait_for(lambda: shown()[1] == expected(), "the copy has followed")
                assert shown()[0] > copies
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) == 0


def test_the_component_of_the_readme_shows_calls(gateway: Stand, tmp_path: Path):
    block = re.search(r"```tsx\n(.*?)```", README, re.DOTALL)
    assert block is not None
    address = str(gateway.client.base_url).rstrip("/")
    main = block[1].replace("http://127.0.0.1:8080", address).replace("YOUR-KEY", DASHBOARD.key)
    (tmp_path / "main.tsx").write_text(main, "utf-8")
    command = compiled(tmp_path, "rendered.tsx", RENDERED)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    calls = listed(gateway, LIST)
    assert f"<p>{len(calls)}<!-- --> calls</p>" in done.stdout, done.stderr
    assert re.findall("<li>(.*?)</li>", done.stdout) == [call["startTime"] for call in list(calls.values())[:100]]
    assert "<button>More</button>" in done.stdout
