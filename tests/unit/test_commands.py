"""Both command lines as a person meets them first: help, version, a mistyped command, the environment."""

import re

import pytest
import yaml
from click.testing import CliRunner

import create_dataset_streams
import extract_activations
import extraction
from extraction.core.command_group import CommandGroup
from tests.helpers.workers import ROOT

BOTH = [extract_activations.cli, create_dataset_streams.cli]
INTERNAL = r"LAUNCH_\w+|EXTRACT_KILL_AT|NO_GCE_CHECK"  # of launch_worker.sh, of tests


def told(group: CommandGroup, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, list(words), terminal_width=80)
    return result.exit_code, result.output


@pytest.mark.parametrize("group", BOTH)
def test_help_has_whole_summaries_and_the_version_is_told(group):
    code, shown = told(group, "-h")
    assert (code, "..." in shown.partition("Commands:")[2]) == (0, False)
    assert all(name in shown for name in group.list_commands(None))
    assert shown == told(group, "--help")[1]
    assert extraction.__version__ in told(group, "--version")[1]
    assert "-h, --help" in told(group, group.list_commands(None)[0], "-h")[1]


@pytest.mark.parametrize(
    "group, word, words",
    [(BOTH[0], "verfy", "did you mean verify?"), (BOTH[1], "finweb", "did you mean fineweb?"),
     (BOTH[0], "zzz", "there are export, parity"), (BOTH[1], "zzz", "there are ai2-arc")],
)  # fmt: skip
def test_a_mistyped_command_is_named(group, word, words):
    code, shown = told(group, word, "somewhere")
    assert (code, words in shown) == (2, True), shown


def test_flags_without_a_command_are_those_of_run():
    code, shown = told(extract_activations.cli, "--model", "m")
    assert (code, "Missing option '--streams'" in shown) == (2, True), shown


def test_help_names_the_environment_variables_that_the_code_reads():
    shown = told(extract_activations.cli, "-h")[1]
    source = "\n".join(path.read_text() for path in (ROOT / "extraction").rglob("*.py"))
    read = set(re.findall(r'environ\.get\(\s*"(\w+)"', source)) | {"EXTRACT_RETRY_DEADLINE"}
    assert len(read) > 6
    for name in read:
        assert name in shown or re.fullmatch(INTERNAL, name), name


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (extraction.__version__, "Apache-2.0")
