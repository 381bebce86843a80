"""Ctrl-C, whatever the program is at."""

import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT, environment


def test_ctrl_c_before_the_program_begins():
    command = [sys.executable, "-X", "importtime", "-m", "train.report", "none"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith("| train\n"):  # it has been imported: from here on there is one answer
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("interrupted\n")
    assert "Traceback" not in rest


def interrupted(folder, code, times=1):
    """(exit code, stdout, stderr) of a program, interrupted when it says `go`."""
    command = [sys.executable, "-c", f"from train.cli import run_program\n{code}\nrun_program(main)"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own = environment()
    own |= {"PYTHONPATH": f"{folder}:{own['PYTHONPATH']}"}
    with subprocess.Popen(command, cwd=ROOT, env=own, **pipes) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(0.2)  # until what follows has begun
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


# A library that is computing, for longer than any test takes, and looks at no signals.
LONG = "import hashlib\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"


def test_in_the_middle_of_an_import_which_takes_it_for_its_own(tmp_path):
    text = "import time\nprint('go', flush=True)\ntry:\n    time.sleep(1)\nexcept BaseException:\n    print('taken')\n"
    (tmp_path / "heavy.py").write_text(text)
    code = "import time\ndef main():\n    import heavy\n    print('imported', flush=True)\n    time.sleep(60)"
    assert interrupted(tmp_path, code) == (130, "imported\n", "interrupted\n")


def test_while_a_library_computes_for_longer_than_anybody_waits(tmp_path):
    first = "from train.process import interrupts\ninterrupts.PATIENCE = 0.5"
    code = f"{first}\ndef main():\n    print('go', flush=True)\n    {LONG}"
    assert interrupted(tmp_path, code) == (130, "", "interrupted\n")


def test_twice_while_a_library_computes(tmp_path):
    code, out, err = interrupted(tmp_path, f"def main():\n    print('go', flush=True)\n    {LONG}", times=2)
    # -2: where the second one came when Python was ending already
    assert (code in (130, -signal.SIGINT), out, err) == (True, "", "interrupted\n")


def test_twice_where_the_second_one_meets_the_program_s_end(tmp_path):
    """What has to be done at the exit takes its time."""
    late = "import atexit, time\n    atexit.register(time.sleep, 60)"
    code = f"def main():\n    {late}\n    print('go', flush=True)\n    time.sleep(60)"
    assert interrupted(tmp_path, code, times=2) == (130, "", "interrupted\n")


def test_while_sentencepiece_trains(tmp_path):
    """Its training, of which Python hears nothing before its end, is that of the test here: no test waits as long."""
    code = (
        f"import sentencepiece\nfrom train.data.tokenizers import spm\n\ndef train(*arguments, **options):\n"
        f"    print('go', flush=True)\n    {LONG}\n"
        "sentencepiece.SentencePieceTrainer.train = train\n"
        "def main():\n    spm.train_sentencepiece(['text'], 300)\n"
    )
    assert interrupted(tmp_path, code) == (130, "", "interrupted\n")


def test_the_name_mom_is_known_from_the_first_moment_too():
    code = (
        "import sys; sys.argv = ['mom report']; import train, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    )
    for argv, name in (("mom report", "end"), ("other", "default_int_handler")):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("mom report", argv)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.strip() == name, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_what_a_thread_raises_is_raised_where_it_is_waited_for(error):
    from train.process.interrupts import apart

    def fail():
        raise error

    with pytest.raises(type(error)):
        apart(fail)
    assert apart(lambda: 3) == 3


# Python reports what is raised in these, and goes on.
CALLBACKS = {
    "the garbage collector's": "gc.callbacks.append(lambda *_: wait())\n    gc.collect()",
    "an object's end": "class Thing:\n        __del__ = lambda self: wait()\n    Thing()",
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_in_a_callback_whose_errors_are_ignored(tmp_path, name):
    code = (
        "import gc, time\n\ndef wait():\n    gc.callbacks.clear()\n    print('go', flush=True)\n    time.sleep(60)\n\n"
        f"def main():\n    {CALLBACKS[name]}\n    time.sleep(60)"
    )
    assert interrupted(tmp_path, code) == (130, "", "interrupted\n")


def test_python_does_not_end_around_what_computes(tmp_path):
    """Ending would unwind the other thread, and C++ aborts a process in which that meets threads of its own."""
    code = (
        "import atexit, time\nfrom train.process import interrupts\n\ndef main():\n"
        "    atexit.register(print, 'Python has ended')\n    print('go', flush=True)\n"
        "    interrupts.apart(lambda: time.sleep(60))"
    )
    assert interrupted(tmp_path, code) == (130, "", "interrupted\n")
