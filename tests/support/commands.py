"""The command line as a process."""

import os
import pty
import signal
import subprocess
import sys

ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
COMMAND = [sys.executable, "-m", "gateway"]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | variables
    return subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)


def accept_interrupts() -> None:
    """Let SIGINT interrupt this process; called before a program starts. Background jobs of shells ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(*words: str, interrupt_at: str = "", **variables: str) -> tuple[int, str]:
    """Run a command whose standard error is a terminal. Return the exit code, and the text on the terminal.

    The command is interrupted once the terminal shows a text.
    """
    leader, follower = pty.openpty()
    environment = ENVIRONMENT | variables
    with subprocess.Popen(
        [*COMMAND, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        preexec_fn=accept_interrupts,
    ) as process:
        os.close(follower)
        shown = b""
        while piece := _read(leader):
            shown += piece
            if interrupt_at and interrupt_at.encode() in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = ""
    os.close(leader)
    return process.returncode, shown.decode()


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux raises EIO when the other end is closed
        return b""
