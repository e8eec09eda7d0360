"""The control daemon of MPS for emulated GPUs, and the client's side of it: standard library alone.

    python -I -S mps_emulated.py -d [-S]     start the daemon in the background
    echo COMMAND | python -I -S mps_emulated.py    ask it, as one asks nvidia-cuda-mps-control

It answers the commands that Clover uses in the words of nvidia-cuda-mps-control (release 13.x), finds its pipe
directory by CUDA_MPS_PIPE_DIRECTORY, and writes its process id where that does.  What it has of the field's manners:

 - it takes one command at a time;
 - a fault of a client ends all clients of the GPU, each at its next batch, and new ones are refused until all have
   gone (the status is FAULT meanwhile);
 - a client that is killed while it computes is such a fault, unless `terminate_client` ended its work before;
 - with static partitions (-S) a client without one is refused.

One daemon has one GPU.  Beside the real one's commands it knows `fault PID`: that client makes a fatal error now.  Two
variables say what the board is: CLOVER_MPS_SMS, its multiprocessors, and CLOVER_MPS_CHUNK, how many of them are the
least that a static partition takes (0: it can have none).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import sys
import time

CHUNK, SMS = "CLOVER_MPS_CHUNK", "CLOVER_MPS_SMS"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
PARTITION = "CUDA_MPS_SM_PARTITION"
PID_FILE = "nvidia-cuda-mps-control.pid"

_CONTROL, _CLIENTS = "control", "clients"
_BUSY, _ENDED = 0, 1
"""Bytes of what a client and the daemon share: whether the client computes, and why it must not any more."""
_ERRORS = {
    1: "MPS: a fault of a client ended all clients of the GPU (CUDA error 719)",
    2: "MPS client has been terminated by the server (CUDA error 810)",
    3: "remote procedural call between the MPS server and client failed (CUDA error 806)",
}
_FAULT, _TERMINATED, _GONE = _ERRORS
_NOT_READY = "MPS server is not ready to accept new MPS client requests (CUDA error 807)"
_LOOK_S = 5.0


class MpsRefused(Exception):
    """The daemon does not take this client, or has ended its work; the text is CUDA's error."""


class MpsConnection:
    """This process as a client of the daemon at `pipe`, from now until its end.  `environment` has the variables by
    which it says what it may use.  Raises MpsRefused if the daemon refuses it."""

    def __init__(self, pipe: str, environment: dict[str, str]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        memory = os.memfd_create("mps-client", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, mmap.PAGESIZE)
            self._shared = mmap.mmap(memory, mmap.PAGESIZE)
            self._socket.connect(os.path.join(pipe, _CLIENTS))
            hello = f"{os.getpid()}\n{environment.get(PARTITION, '')}"
            socket.send_fds(self._socket, [hello.encode()], [memory])
            answer = self._socket.recv(256).decode()
        except OSError as error:
            self._socket.close()
            raise MpsRefused(f"MPS client failed to connect to the MPS control daemon ({error.strerror})") from error
        finally:
            os.close(memory)
        if answer != "ok":
            self._socket.close()
            raise MpsRefused(answer or _NOT_READY)

    def begin(self) -> None:
        """Begin to compute; raises MpsRefused if the server ended this client's work."""
        self._shared[_BUSY] = 1
        self.check()

    def end(self) -> None:
        """End computing; raises as `begin` does."""
        self.check()
        self._shared[_BUSY] = 0

    def check(self) -> None:
        """Raise MpsRefused if the server ended this client's work."""
        if why := self._shared[_ENDED]:
            raise MpsRefused(_ERRORS[why])


class _Client:
    """A client as the daemon sees it."""

    def __init__(self, link: socket.socket, pid: int, partition: str, shared: mmap.mmap) -> None:
        self.link = link
        self.pid = pid
        self.partition = partition
        self.shared = shared


class Daemon:
    """The daemon of one GPU, whose UUID is `uuid`, in the folder `pipe`."""

    def __init__(self, pipe: str, uuid: str, *, static: bool, sms: int, chunk: int) -> None:
        self._pipe = pipe
        self._uuid = uuid
        self._static = static
        self._chunk = chunk
        self._sms = sms
        self._partitions: dict[str, int] = {}
        self._made = 0
        self._clients: list[_Client] = []
        self._served = False
        self._fault = False
        self._quits = False
        self._selector = selectors.DefaultSelector()

    def listen(self) -> None:
        """Take commands and clients from now on."""
        for name, answer in ((_CONTROL, self._command), (_CLIENTS, self._connect)):
            path = os.path.join(self._pipe, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(64)
            self._selector.register(listener, selectors.EVENT_READ, answer)

    def run(self) -> None:
        """Serve until a command says quit, or the pipe directory is gone."""
        while not self._quits and os.path.isdir(self._pipe):
            for key, _ in self._selector.select(_LOOK_S):
                key.data(key.fileobj)
        for client in self._clients:
            client.shared[_ENDED] = client.shared[_ENDED] or _GONE
        for name in (_CONTROL, _CLIENTS, PID_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._pipe, name))

    # --- clients ------------------------------------------------------------------------------------------------------

    def _connect(self, listener: socket.socket) -> None:
        link, _ = listener.accept()
        link.settimeout(_LOOK_S)
        try:
            hello, files, _, _ = socket.recv_fds(link, 4096, 1)
            pid, partition = hello.decode().split("\n")
            shared = mmap.mmap(files[0], mmap.PAGESIZE)
            os.close(files[0])
            refused = self._refused(partition)
            link.sendall((refused or "ok").encode())
        except (OSError, ValueError, IndexError):
            link.close()
            return
        if refused:
            link.close()
            return
        self._served = True
        client = _Client(link, int(pid), partition, shared)
        self._clients.append(client)
        self._selector.register(link, selectors.EVENT_READ, lambda _: self._gone(client))

    def _refused(self, partition: str) -> str:
        if self._fault:
            return _NOT_READY
        if self._static and partition.partition("/")[2] not in self._partitions:
            return "invalid resource configuration: no such SM partition (CUDA error 914)"
        return ""

    def _gone(self, client: _Client) -> None:
        """Forget a client whose process has ended."""
        self._selector.unregister(client.link)
        client.link.close()
        self._clients.remove(client)
        if client.shared[_BUSY] and not client.shared[_ENDED]:
            self._break()
        self._fault = self._fault and bool(self._clients)

    def _break(self) -> None:
        """End the work of all clients after a fault of one."""
        self._fault = True
        for client in self._clients:
            client.shared[_ENDED] = client.shared[_ENDED] or _FAULT

    # --- commands -----------------------------------------------------------------------------------------------------

    def _command(self, listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link:
            link.settimeout(_LOOK_S)
            text = b""
            with contextlib.suppress(OSError):
                while data := link.recv(4096):
                    text += data
            lines = [self.answer(line.split()) for line in text.decode(errors="replace").splitlines() if line.strip()]
            with contextlib.suppress(OSError):
                link.sendall("".join(f"{line}\n" for line in lines if line).encode())

    def answer(self, words: list[str]) -> str:
        """Return what the daemon says to a command."""
        match words:
            case ["get_server_list"]:
                return str(os.getpid()) if self._served else ""
            case ["get_client_list", _]:
                return "\n".join(str(client.pid) for client in self._clients)
            case ["get_server_status", server]:
                if not self._served or server != str(os.getpid()):
                    return f"Server {server} not found"
                return "FAULT" if self._fault else "ACTIVE"
            case ["terminate_client", _, pid]:
                return self._end_work(int(pid), _TERMINATED)
            case ["fault", pid]:
                said = self._end_work(int(pid), _FAULT)
                self._break()
                return said
            case ["lspart"] if self._static:
                return self._listed()
            case ["sm_partition", "add", uuid, chunks] if self._static and uuid == self._uuid:
                return self._add(int(chunks))
            case ["sm_partition", "rm", uuid, name] if self._static and uuid == self._uuid:
                return self._remove(name)
            case ["quit", *_]:
                self._quits = True
                return ""
        return f"Unrecognized command: {' '.join(words)}"

    def _end_work(self, pid: int, why: int) -> str:
        found = [client for client in self._clients if client.pid == pid]
        for client in found:
            client.shared[_ENDED] = client.shared[_ENDED] or why
        return "0" if found else f"Invalid process {pid}!"

    def _add(self, chunks: int) -> str:
        if not 1 <= chunks <= self._free:
            return (
                f"Failed to fulfill the requested SM partition of {chunks} chunks, error "
                "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"
            )
        self._made += 1
        name = f"Dx{self._made}AAAA/{self._made}A"  # an id may have slashes of its own
        self._partitions[name] = chunks
        return f"Partition {self._uuid}/{name} created"

    def _remove(self, name: str) -> str:
        if name not in self._partitions:
            return f"Failed to find partition {name}"
        if any(client.partition.partition("/")[2] == name for client in self._clients):
            return f"Failed to remove partition {name}: clients use it"
        del self._partitions[name]
        return f"Partition {name} removed"

    @property
    def _free(self) -> int:
        return self._sms // self._chunk - sum(self._partitions.values())

    def _listed(self) -> str:
        used = sum(self._partitions.values())
        sms = used * self._chunk
        lines = ["GPU           Partition  free   used   free  used clients"]
        lines.append("                         chunks chunks SM    SM")
        lines.append(f"{self._uuid[:12]}  -  {self._free} {used} {self._sms - sms} {sms} -")
        for name, chunks in self._partitions.items():
            taken = any(client.partition.partition("/")[2] == name for client in self._clients)
            lines.append(f"{self._uuid[:12]}  {name}  -  {chunks} - {chunks * self._chunk} {'Yes' if taken else 'No'}")
        return "\n".join(lines)


# --- the program ------------------------------------------------------------------------------------------------------


def start(pipe: str, *, static: bool, background: bool) -> int:
    """Start the daemon, in the background or in this process; return an exit status once it listens."""
    sms, chunk = int(os.environ.get(SMS) or 0), int(os.environ.get(CHUNK) or 0)
    if static and not chunk:
        print("static partitioning is not supported on this device", file=sys.stderr)
        return 1
    os.makedirs(pipe, mode=0o700, exist_ok=True)
    if running(pipe):
        print("An instance of this daemon is already running", file=sys.stderr)
        return 1
    daemon = Daemon(pipe, os.environ.get("CUDA_VISIBLE_DEVICES", ""), static=static, sms=sms, chunk=chunk)
    daemon.listen()
    if background and os.fork():
        for _ in range(1000):
            if running(pipe):
                return 0
            time.sleep(0.005)
        return 1
    if background:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    draft = os.path.join(pipe, f".{PID_FILE}.new")
    with open(draft, "w") as file:
        file.write(f"{os.getpid()}\n")
    os.replace(draft, os.path.join(pipe, PID_FILE))
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write("nvidia-cuda-mps")
    daemon.run()
    return 0


def running(pipe: str) -> bool:
    """Return whether a daemon has `pipe`."""
    if not os.path.exists(os.path.join(pipe, PID_FILE)):
        return False  # it only begins to
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        return link.connect_ex(os.path.join(pipe, _CONTROL)) == 0


def ask(pipe: str, text: str) -> int:
    """Pass commands on to the daemon and print what it says; return an exit status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(os.path.join(pipe, _CONTROL))
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
        link.sendall(text.encode())
        link.shutdown(socket.SHUT_WR)
        while data := link.recv(65536):
            sys.stdout.write(data.decode())
    return 0


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    pipe = os.environ.get(PIPE) or "/tmp/nvidia-mps"
    if "-v" in argv:
        print("Binary version: 13010")
        return 0
    if {"-d", "-f"} & set(argv):
        return start(pipe, static="-S" in argv, background="-d" in argv)
    return ask(pipe, " ".join(argv) if argv else sys.stdin.read())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
