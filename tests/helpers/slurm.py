"""A Slurm cluster of one node for tests: real munged, slurmctld and slurmd, as root, without systemd."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=10
MinJobAge=300
SlurmctldParameters=reboot_from_controller
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def missing() -> str | None:
    """What keeps a cluster from being started here, or None."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if absent:
        return f"Debian's slurm-wlm is not installed: no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "starting slurmd needs root"


class Cluster:
    """Use as a context manager; `run` calls one of Slurm's commands."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = {"port": one.getsockname()[1], "next_port": two.getsockname()[1]}
        text = CONFIGURATION.format(host=socket.gethostname(), folder=self.folder, cpus=os.cpu_count(), **ports)
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}",
                   f"--pid-file={self.folder}/munge.pid", f"--seed-file={self.folder}/munge.seed",
                   f"--log-file={self.folder}/munge.log")  # fmt: skip
        self.until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", socket.gethostname())
        self.until(lambda: "idle" in self.run("sinfo", "--noheader", check=False), "the node")
        return self

    def __exit__(self, *error: object) -> None:
        self.run("scancel", "--user=root", check=False)
        self.until(lambda: not self.run("squeue", "--noheader", check=False), "the end of its jobs")
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)

    def start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("w") as log:
            self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        result = subprocess.run(
            [str(part) for part in command], env=self.environment | environment, capture_output=True, text=True
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout.strip()

    def until(self, condition, what: str, seconds: float = 60) -> None:
        """Wait until `condition()` is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}: {self.logs()}"
            time.sleep(0.2)

    def states(self, job: str) -> Sequence[str]:
        """The state of each task of an array job that Slurm still knows."""
        return [line.split("JobState=")[1].split()[0] for line in self.run("scontrol", "show", "job", job).splitlines()
                if "JobState=" in line]  # fmt: skip

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("slurm*.out")))
