"""The files of deploy/, each as far as it can be tried without a cloud account, on the engine's own code."""

import copy
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

import checkpoint
from extraction.format.commit import parse_commit
from extraction.storage import open_storage
from tests.helpers import slurm
from tests.helpers.fake_metadata import FakeMetadata
from tests.helpers.job_rules import violations
from tests.helpers.workers import MODEL, ROOT, make_streams, text_of, verify, write_corpus

DEPLOY = ROOT / "deploy"
FILES = ["Dockerfile", "skypilot.yaml", "gke-job.yaml", "slurm.sbatch", "tpu_vm_startup.sh"]


@pytest.mark.parametrize("name", FILES)
def test_each_ends_in_the_launcher(name):
    assert "launch_worker.sh" in (DEPLOY / name).read_text()


@pytest.mark.parametrize("name", ["skypilot.yaml", "skypilot-pool.yaml", "tpu_vm_startup.sh"])
def test_those_that_install_use_the_lock(name):
    assert "deploy/locks/tpu.txt" in (DEPLOY / name).read_text()


@pytest.mark.parametrize("accelerator, package", [("cpu", "jaxlib"), ("tpu", "libtpu"), ("cuda", "jax-cuda13-plugin")])
def test_locks_are_exact_and_meet_what_the_project_asks_for(accelerator, package):
    from packaging.requirements import Requirement

    lines = (DEPLOY / f"locks/{accelerator}.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert package in versions
    project = (ROOT / "pyproject.toml").read_text()
    wanted = [re.search(rf"\n{which} = \[(.*?)\]", project, re.DOTALL)[1] for which in ("dependencies", "s3")]
    for text in re.findall(r'"([^"]+)"', "".join(wanted)):
        requirement = Requirement(text)
        name = requirement.name.replace("_", "-")
        assert requirement.specifier.contains(versions.get(name) or versions[requirement.name]), text


@pytest.mark.slow
def test_skypilot_takes_the_task():
    """SKYPILOT_PYTHON may name an interpreter that has skypilot, which does not go well with other packages."""
    python = os.environ.get("SKYPILOT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True).returncode:
        pytest.skip("the package skypilot is not installed, nor in the interpreter that SKYPILOT_PYTHON names")
    code = (
        f"import sky; task = sky.Task.from_yaml({str(DEPLOY / 'skypilot.yaml')!r}); (r,) = task.resources\n"
        "print(r.use_spot, *r.accelerators, r.job_recovery['recover_on_exit_codes'], task.run.split()[-1])"
    )
    result = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["True tpu-v5litepod-8 [75] ./launch_worker.sh"], result.stderr


def test_a_pool_has_the_machines_that_its_jobs_ask_for():
    """As SkyPilot documents: a pool has no `run`, and a job in it neither `setup` nor `workdir` of its own."""
    pool, task = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("skypilot-pool.yaml", "skypilot.yaml"))
    wanted = {key: value for key, value in task["resources"].items() if key != "job_recovery"}
    assert pool == {"pool": {"workers": 64}, "resources": wanted, "workdir": task["workdir"], "setup": task["setup"]}


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((DEPLOY / "gke-job.yaml").read_text())


@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_kubernetes_takes_the_job(job, version):
    import kubernetes_validate

    kubernetes_validate.validate(job, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"completionMode": 3}}, version, strict=True)


def test_the_job_restarts_what_can_be_helped_and_nothing_else(job):
    spec = job["spec"]
    assert (spec["completionMode"], spec["template"]["spec"]["restartPolicy"]) == ("Indexed", "Never")
    ignored, failed, again = spec["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailIndex", [2, 65, 77, 78])
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [75])
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 8  # what a worker may take after SIGTERM


SPEC, POD = "spec", "spec.template.spec"
REFUSED = [
    ("podReplacementPolicy", SPEC, {"podReplacementPolicy": "TerminatingOrFailed"}),
    ("restartPolicy", POD, {"restartPolicy": "OnFailure"}),
    ("restartPolicy", POD, {"restartPolicy": "Always"}),
    ("backoffLimitPerIndex", SPEC, {"completionMode": "NonIndexed"}),
    ("completions: required", SPEC, {"completions": None}),
    ("backoffLimitPerIndex: required", SPEC, {"backoffLimitPerIndex": None}),
    ("rules\\[1\\].action: FailIndex", SPEC, {"backoffLimitPerIndex": None, "maxFailedIndexes": None}),
    ("maxFailedIndexes: more", SPEC, {"maxFailedIndexes": 65}),
    ("maxFailedIndexes: required", SPEC, {"completions": 100_001, "maxFailedIndexes": None}),
    ("parallelism", SPEC, {"parallelism": 100_001}),
    ("parallelism", SPEC, {"completions": 100_001, "parallelism": 10_001}),
    ("below zero", SPEC, {"backoffLimitPerIndex": -1}),
    ("no label", "metadata", {"name": "x" * 62}),
    ("not ordered", "spec.podFailurePolicy.rules.1.onExitCodes", {"values": [65, 2]}),
    ("not ordered", "spec.podFailurePolicy.rules.1.onExitCodes", {"values": [2, 2]}),
    ("0 is no failure", "spec.podFailurePolicy.rules.1.onExitCodes", {"values": [0, 2]}),
    ("no container", "spec.podFailurePolicy.rules.1.onExitCodes", {"containerName": "another"}),
    ("exactly one", "spec.podFailurePolicy.rules.0", {"onExitCodes": {"operator": "In", "values": [1]}}),
    ("neither True", "spec.podFailurePolicy.rules.0.onPodConditions.0", {"status": True}),
    ("google.com/tpu", f"{POD}.containers.0.resources.requests", {"google.com/tpu": "4"}),
    ("google.com/tpu", f"{POD}.containers.0.resources", {"limits": {}}),
    ("Exists", f"{POD}.tolerations.0", {"operator": "Exists"}),
]


@pytest.mark.parametrize("words, place, change", REFUSED, ids=[f"{p}:{next(iter(c))}" for _, p, c in REFUSED])
def test_kubernetes_does_not_refuse_the_job_for_what_no_schema_says(job, words, place, change):
    assert violations(job) == []
    broken = at = copy.deepcopy(job)
    for key in place.split("."):
        at = at[int(key) if isinstance(at, list) else key]
    at.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del at[name]
    assert any(re.search(words, problem) for problem in violations(broken)), violations(broken)


# ---------------------------------------------------------------------------------------------- the image


@pytest.mark.slow
def test_the_image_has_what_a_worker_needs_and_no_root(tmp_path):
    """The lines of the Dockerfile as far as they go without Docker: its copies alone start the launcher and a worker."""
    steps = [line.split() for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line[:1].isalpha()]
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for _, *sources, target in (words for words in steps if words[0] == "COPY"):
        for name in sources:
            source = ROOT / name.replace("${ACCELERATOR}", "tpu")
            assert f"!{name}" in kept or f"!*{source.suffix}" in kept or f"!{source.parent.relative_to(ROOT)}" in kept
            to = tmp_path / (source.name if target == "./" else target)
            shutil.copytree(source, to) if source.is_dir() else shutil.copy(source, to)
    assert int(dict(words[:2] for words in steps)["USER"]) > 0
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment |= {"MODEL": "/nowhere", "STREAMS": "s", "OUTPUT": str(tmp_path / "o"), "LAYERS": "1"}
    (command,) = [re.findall(r'"(.*?)"', words[1]) for words in steps if words[0] == "CMD"]
    result = subprocess.run([*command, "0"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, "/nowhere" in result.stderr) == (2, True), result.stderr


# ---------------------------------------------------------------------------------------------- TPU VM

STUB = '#!/bin/sh\necho "$(basename "$0") $*" >> {log}\n[ "$1" != clone ] || mkdir -p "$4/deploy/locks"\n'


@pytest.fixture
def machine(tmp_path):
    """A machine that boots: a metadata server, and stubs for what would change this one."""
    (tmp_path / "bin").mkdir()
    for name in ("git", "uv", "systemctl"):
        path = tmp_path / "bin" / name
        path.write_text(STUB.format(log=tmp_path / "calls"))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    with FakeMetadata() as server:
        environment = {
            "GCE_METADATA_HOST": server.host,
            "EXTRACTION_HOME": str(tmp_path / "home"),
            "SYSTEMD_UNITS": str(tmp_path / "units"),
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        }

        def boot():
            return subprocess.run([DEPLOY / "tpu_vm_startup.sh"], env=environment, capture_output=True, text=True)

        yield server, boot


@pytest.mark.slow
def test_a_tpu_vm_starts_its_worker_at_every_boot(machine, tmp_path):
    server, boot = machine
    server.attributes = {
        "repository": "https://example.org/x.git",
        "model": "a model",
        "streams": "gs://b/s",
        "output": "gs://b/o",
        "worker-id": "7",
        "settings": "EXTRACT_SEQ_LEN=1024 EXTRACT_BOS=never",
    }
    for _ in range(2):
        result = boot()
        assert result.returncode == 0, result.stderr
    lines = (tmp_path / "home/worker.env").read_text().split("\n")
    assert {'MODEL="a model"', 'OUTPUT="gs://b/o"', "WORKER_ID=7", "EXTRACT_SEQ_LEN=1024"} <= set(lines)
    assert "STREAM=any" not in lines
    unit = (tmp_path / "units/extraction-worker.service").read_text()
    assert f"ExecStart={tmp_path}/home/project/launch_worker.sh" in unit
    assert re.findall("^(?:Restart|OOM).*", unit, re.M) == [
        "Restart=on-abnormal",
        "RestartSec=10",
        "OOMPolicy=continue",
    ]
    calls = (tmp_path / "calls").read_text()
    assert calls.count("git clone") == 1
    assert calls.count("systemctl restart extraction-worker.service") == 2
    assert calls.count("--requirement deploy/locks/tpu.txt") == 2


@pytest.mark.slow
def test_a_tpu_vm_runs_the_revision_that_the_metadata_names(machine, tmp_path):
    """With the real git: a commit that is behind the branch, and at the next boot a tag that was made meanwhile."""
    server, boot = machine

    def git(*words):
        settings = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main")
        command = ["git", *settings, "-C", tmp_path / "origin", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "bin/git").unlink()
    (tmp_path / "origin").mkdir()
    git("init", "--quiet")
    commits = []
    for text in ("one", "two"):
        (tmp_path / "origin/file").write_text(text)
        git("add", "file")
        git("commit", "--quiet", "--message", text)
        commits.append(git("rev-parse", "HEAD"))
    server.attributes = {"repository": str(tmp_path / "origin"), "model": "m", "revision": commits[0]}
    for revision, text in ((commits[0], "one"), ("v2", "two")):
        server.attributes["revision"] = revision
        result = boot()
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "home/project/file").read_text() == text
        git("tag", "--force", "v2")
    server.attributes["revision"] = "nowhere"
    assert boot().returncode != 0


@pytest.mark.slow
def test_systemd_takes_the_unit(machine, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    server, boot = machine
    server.attributes = {"repository": "x", "model": "m"}
    assert boot().returncode == 0
    shutil.copy(ROOT / "launch_worker.sh", tmp_path / "home/project")
    unit = tmp_path / "units/extraction-worker.service"
    for text, is_good in (
        (unit.read_text(), True),
        (unit.read_text().replace("Restart=on-abnormal", "Restart=x"), False),
    ):
        unit.write_text(text)
        result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        assert (result.stderr == "") == is_good, result.stderr


@pytest.mark.slow
def test_a_tpu_vm_without_a_number_takes_free_streams(machine, tmp_path):
    server, boot = machine
    server.attributes = {"repository": "x", "model": "m"}
    assert boot().returncode == 0
    assert "STREAM=any" in (tmp_path / "home/worker.env").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attributes, failures, code, words",
    [
        ({}, (), 2, "repository is not set"),
        ({"repository": "x"}, (403,), 75, "does not tell repository"),
    ],
)
def test_a_tpu_vm_that_is_told_nothing_says_so(machine, attributes, failures, code, words):
    server, boot = machine
    server.attributes, server.failures = attributes, list(failures)
    result = boot()
    assert (result.returncode, words in result.stderr) == (code, True), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "chips, code, told",
    [
        ("4", 0, "1,1,1 2,2,1 0,1,2,3"),
        ("8", 0, "1,1,1 2,4,1 0,1,2,3,4,5,6,7"),
        (None, 0, ""),
        ("3", 2, None),
    ],
)
def test_a_host_of_a_slice_can_be_had_to_itself(tmp_path, chips, code, told):
    stub = tmp_path / "python"
    variables = "$TPU_PROCESS_BOUNDS $TPU_CHIPS_PER_PROCESS_BOUNDS $TPU_VISIBLE_DEVICES"
    stub.write_text(f'#!/bin/sh\ncase "$1" in -c) exec {sys.executable} "$@";; esac\necho {variables}\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(stub), "MODEL": "m", "STREAMS": "s", "OUTPUT": "o"}
    environment |= {"TPU_HOST_CHIPS": chips} if chips else {}
    result = subprocess.run([ROOT / "launch_worker.sh", "0"], env=environment, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert told is None or result.stdout == told + "\n"


# ---------------------------------------------------------------------------------------------- Slurm


@pytest.mark.slow
def test_slurm_requeues_a_worker_in_mid_stream(tmp_path):
    if reason := slurm.missing():
        pytest.skip(reason)
    corpus = write_corpus(tmp_path / "corpus", [text_of(i, 60) for i in range(2000)])
    streams, output = make_streams(corpus, tmp_path / "streams", 2), tmp_path / "run"
    settings = {
        "MODEL": str(MODEL),
        "STREAMS": str(streams),
        "OUTPUT": str(output),
        "PYTHON": sys.executable,
        "LAYERS": "1",
        "JAX_PLATFORMS": "cpu",
        "EXTRACT_SEQ_LEN": "64",
        "EXTRACT_BATCH_SIZE": "2",
        "EXTRACT_STEPS_PER_BATCH": "1",
        "PROJECT": str(ROOT),
    }
    storage = open_storage(str(output))
    with slurm.Cluster(tmp_path / "cluster") as cluster:
        script, log = DEPLOY / "slurm.sbatch", tmp_path / "worker-%a.log"
        job = cluster.run("sbatch", "--parsable", "--array=0-1", f"--output={log}", script, **settings)
        cluster.until(lambda: len(checkpoint.list_commits(storage, 1)) > 2, "commits of worker 1", 120)
        cluster.run("scontrol", "requeue", f"{job}_1")
        seen = len(checkpoint.list_commits(storage, 1))
        cluster.until(lambda: set(cluster.states(job)) == {"COMPLETED"}, "the end of both workers", 200)
    assert verify(output).returncode == 0
    names = checkpoint.list_commits(storage, 1)
    attempts = {parse_commit(storage.read(name), name).attempt for name in names}
    assert (len(attempts), len(names) > seen) == (2, True), (tmp_path / "worker-1.log").read_text()
