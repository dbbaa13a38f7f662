"""A run may be stopped at any moment, by anything; resumed, it ends with the bits of one that was left alone."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import polars as pl
import pytest
from command_line import ENVIRONMENT, NO_SHEET, edited, qfml, start, wait_until, workplace
from polars.testing import assert_frame_equal

LONG = {"trainer": {"max_epochs": 400, "checkpoint_seconds": 0.0}, "n_seeds": 1}  # seconds, not fractions of one
RUN = "import os, signal, sys; run = sys.modules['qfml.run']"  # `qfml.run` itself is the function
DIE_HERE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config that trains for long enough to be stopped, and its uninterrupted run."""
    place = workplace(tmp_path_factory.mktemp("long"), **LONG)
    assert qfml("run", "config.yaml", "--out", "whole", cwd=place).code == 0
    return place


@pytest.fixture(scope="module")
def killed(place):
    """A run that was killed after two checkpoints; tests work on copies."""
    process = start("run", "config.yaml", "--out", "killed", cwd=place)
    wait_until(lambda: len(checkpoints(place / "killed")) == 2)
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    return place / "killed"


@pytest.fixture
def cut(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "cut")


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("checkpoint-*"))


def assert_same_as_whole(place, folder):
    for name in ("predictions", "positions", "pnl"):
        whole, resumed = (pl.read_parquet(each / f"{name}.parquet") for each in (place / "whole", folder))
        assert_frame_equal(whole, resumed)
        assert (place / "whole" / f"{name}.parquet").read_bytes() == (folder / f"{name}.parquet").read_bytes()
    assert (place / "whole" / "log.jsonl").read_text() == (folder / "log.jsonl").read_text()
    assert (folder / "report.html").is_file()


def command_in(text):
    """The words of the `qfml` command that a message gives, cut as a shell cuts a pasted line."""
    [command] = re.findall(r"Continue with: qfml (.*)$", text, flags=re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize(
    ("number", "out"),
    [(signal.SIGINT, ["--out", "my run; stopped"]), (signal.SIGTERM, [f"--out={'a_rather_long_name_' * 6}"])],
    ids=["ctrl-c", "sigterm"],
)
def test_a_signal_in_training_writes_a_checkpoint_and_the_printed_command_continues(place, number, out):
    process = start("run", "config.yaml", *out, cwd=place)
    folder = place / out[-1].removeprefix("--out=")
    wait_until(lambda: checkpoints(folder))
    process.signal(number)
    stopped = process.wait()
    assert stopped.code == 128 + number
    assert "checkpoint is written" in stopped.err
    assert "Traceback" not in stopped.err + stopped.out
    words = command_in(stopped.err)
    assert words == ["resume", folder.name]
    resumed = qfml(*words, cwd=place)
    assert resumed.code == 0, resumed.err
    assert "resuming from the last checkpoint" in resumed.err
    assert_same_as_whole(place, folder)


@pytest.mark.slow
def test_sigterm_said_until_the_process_has_gone_is_sigterm(place):
    process = start("run", "config.yaml", "--out", "told twice", cwd=place)
    wait_until(lambda: checkpoints(place / "told twice"))
    for _ in range(6):
        process.signal(signal.SIGTERM)
        time.sleep(0.01)
    stopped = process.wait()
    assert stopped.code == 143
    assert "checkpoint is written" in stopped.err
    assert "Traceback" not in stopped.err + stopped.out
    assert qfml(*command_in(stopped.err), cwd=place).code == 0
    assert_same_as_whole(place, place / "told twice")


def test_without_out_the_printed_command_names_the_folder_that_was_made(place):
    process = start("run", "config.yaml", cwd=place)
    wait_until(lambda: list(place.glob("runs/*/checkpoints/checkpoint-*")))
    process.signal(signal.SIGINT)
    words = command_in(process.wait().err)
    assert words[0] == "resume"
    assert (place / words[1] / "config.yaml").is_file()


@pytest.mark.slow
def test_ctrl_c_in_a_resumed_run_can_be_resumed_again(place, cut):
    process = start("resume", cut, cwd=place)
    last = checkpoints(cut)[-1]
    wait_until(lambda: checkpoints(cut)[-1] > last)
    process.signal(signal.SIGINT)
    stopped = process.wait()
    assert stopped.code == 130
    assert qfml(*command_in(stopped.err), cwd=place).code == 0
    assert_same_as_whole(place, cut)


@pytest.mark.parametrize("moment", ["audit", "write_report"])
def test_ctrl_c_before_and_after_training_says_how_to_go_on_too(tmp_path, moment):
    place = workplace(tmp_path)
    place_of = {"audit": "sys.modules['qfml.task'].WalkForwardTask._audit", "write_report": "run.write_report"}
    press = f"{RUN}\n{place_of[moment]} = lambda *rest: os.kill(os.getpid(), signal.SIGINT)"
    stopped = qfml("run", "config.yaml", "--out", "cut", cwd=place, before=press)
    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    words = command_in(stopped.err)
    assert words == ["report" if moment == "write_report" else "resume", "cut"]
    assert qfml(*words, cwd=place).code == 0
    assert (place / "cut" / "report.html").is_file()


def test_kill_9_and_resume_gives_the_same_bits(place, cut):
    assert not (cut / "metrics.json").exists()
    resumed = qfml("resume", cut, "--quiet", cwd=place)
    assert (resumed.code, resumed.err) == (0, "")
    assert_same_as_whole(place, cut)
    found = json.loads((cut / "metrics.json").read_text())
    whole = json.loads((place / "whole" / "metrics.json").read_text())
    assert {k: v for k, v in found.items() if k not in ("created", "seconds")} == {
        k: v for k, v in whole.items() if k not in ("created", "seconds")
    }


def test_kill_9_before_the_first_checkpoint_starts_anew(tmp_path):
    place = workplace(tmp_path)
    die = f"{RUN}\ntask = sys.modules['qfml.task']\ntask.WalkForwardTask._audit = lambda *rest: {DIE_HERE}"
    assert qfml("run", "config.yaml", "--out", "cut", cwd=place, before=die).code == -signal.SIGKILL
    assert not (place / "cut" / "checkpoints").exists()
    assert qfml("resume", "cut", cwd=place).code == 0
    assert qfml("run", "config.yaml", "--out", "whole", cwd=place).code == 0
    assert (place / "cut" / "predictions.parquet").read_bytes() == (
        place / "whole" / "predictions.parquet"
    ).read_bytes()


SAVING = {
    "half a model": f"""
        import os, signal, qfml.backtest.result as result
        def half(folder, *rest):
            folder.mkdir()
            (folder / "state.json").write_text('{{"network": ')
            {DIE_HERE}
        result.save_fits = half
    """,
    "model without its manifest": f"""
        import os, signal, qfml.backtest.result as result
        write = result.save_fits
        def half(folder, *rest):
            write(folder, *rest)
            (folder / "manifest.json").unlink()
            {DIE_HERE}
        result.save_fits = half
    """,
    "half the metrics": f"""
        import os, signal, qfml.backtest.result as result
        write = result.replace_text
        def half(path, text):
            if path.name == "metrics.json":
                path.with_name(".metrics.json-" + 8 * "cafe").write_text(text[:1000])
                {DIE_HERE}
            write(path, text)
        result.replace_text = half
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", SAVING)
def test_kill_9_while_the_result_is_saved(place, cut, moment):
    assert qfml("resume", cut, cwd=place, before=textwrap.dedent(SAVING[moment])).code == -signal.SIGKILL
    assert qfml("predict", cut, "prices.csv", cwd=place).code == 2
    assert qfml("report", cut, cwd=place).code == 2
    resumed = qfml("resume", cut, cwd=place)
    assert resumed.code == 0, resumed.err
    assert_same_as_whole(place, cut)
    assert qfml("predict", cut, "prices.csv", cwd=place).code == 0
    assert not list(cut.glob(".*"))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(place, cut):
    older, newest = checkpoints(cut)
    with edited(newest / "tensors.safetensors") as content:
        content[-1] ^= 1
    resumed = qfml("resume", cut, cwd=place)
    assert resumed.code == 0
    said = " ".join(resumed.err.split())  # the terminal may break the line anywhere
    assert f"{newest.name} is damaged" in said
    assert f"using {older.name} instead" in said
    assert_same_as_whole(place, cut)


def test_when_every_checkpoint_is_damaged_the_way_out_is_a_new_run(place, cut):
    for checkpoint in checkpoints(cut):
        (checkpoint / "state.json").write_text("{}")
    refused = qfml("resume", cut, cwd=place)
    assert refused.code == 2
    assert "Traceback" not in refused.err
    assert all(f"{checkpoint.name} is damaged" in refused.err for checkpoint in checkpoints(cut))
    assert "Continue with" not in refused.err
    assert f"qfml run {cut / 'config.yaml'}" in refused.err


def test_settings_changed_in_between_are_refused(place, cut):
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("max_epochs: 400", "max_epochs: 401"))
    refused = qfml("resume", cut, cwd=place)
    assert refused.code == 2
    assert "other data, members or settings" in refused.err


def test_prices_changed_in_between_are_refused(place, cut, tmp_path):
    moved = pl.read_csv(place / "prices.csv").with_columns(pl.col("close") * pl.col("volume"))
    moved.write_csv(tmp_path / "prices.csv")
    refused = qfml("resume", cut, cwd=tmp_path)
    assert refused.code == 2
    assert "other data, members or settings" in refused.err


def test_resume_of_what_cannot_be_resumed(place, tmp_path):
    (tmp_path / "some.txt").write_text("not a run")
    for folder, message in [
        (place / "whole", f"is finished; `qfml report {place / 'whole'}` rebuilds its report"),
        (tmp_path, "no run in"),
        (tmp_path / "nowhere", "no run in"),
        (tmp_path / "some.txt", "no run in"),
    ]:
        refused = qfml("resume", folder, cwd=place)
        assert refused.code == 2
        assert message in refused.err
        assert "Traceback" not in refused.err


def test_a_full_disk_leaves_the_previous_checkpoint_and_resume_goes_on(place, cut):
    """Files may not grow past 1 kB in this process: the operating system's own refusal."""
    held = {path: path.read_bytes() for path in checkpoints(cut)[-1].iterdir()}
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"
    full = qfml("resume", cut, "--quiet", cwd=place, before=limit)
    assert full.code == 2
    assert "Traceback" not in full.err
    assert "cannot write a checkpoint" in full.err
    assert "File too large" in full.err
    assert "previous checkpoint is intact" in full.err
    assert {path: path.read_bytes() for path in held} == held
    assert not list((cut / "checkpoints").glob(".writing-*"))
    assert qfml(*command_in(full.err), cwd=place).code == 0
    assert_same_as_whole(place, cut)


FULL = """
import errno, os, qfml.backtest.result as result, qfml.files as files
def full(path, write):
    if path.name == {name!r}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    whole(path, write)
whole = files.replace_file
files.replace_file = result.replace_file = full
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions.parquet", "metrics.json"])
def test_a_full_disk_while_the_result_is_saved(place, cut, name):
    full = qfml("resume", cut, cwd=place, before=FULL.format(name=name))
    assert full.code == 2
    assert "Traceback" not in full.err
    assert "No space left on device" in full.err
    assert qfml(*command_in(full.err), cwd=place).code == 0
    assert_same_as_whole(place, cut)


@pytest.mark.slow
def test_a_real_process_killed_and_resumed_by_module(place, tmp_path):
    """No server in between: the interpreter, the module, a kill -9, and a resume."""
    command = [sys.executable, "-c", f"{NO_SHEET}\nfrom qfml.cli import main\nmain()"]
    quiet = {"cwd": place, "env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "run", "config.yaml", "--out", tmp_path / "cut"], **quiet) as process:
        wait_until(lambda: checkpoints(tmp_path / "cut"))
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, "resume", tmp_path / "cut"], check=True, **quiet)
    assert_same_as_whole(place, tmp_path / "cut")
