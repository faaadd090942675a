"""Warnings of this package are one line on standard error, once; those of libraries are none."""

import warnings


def test_a_warning_of_the_package_is_shown_once(cli, job):
    assert cli(*job.arguments)[0] == 0
    # This model's output rows are as strong as they come, which an export warns of
    code, _, err = cli("export", job.folder / "out", "--output", job.folder / "merged")
    assert code == 0
    notes = err.strip().splitlines()
    assert len(notes) == 1 and notes[0].startswith("Note: The output row of [BE] scores up to "), err


def test_warnings_of_others_are_not_shown(capsys):
    import peft_be.cli.common as common

    with warnings.catch_warnings():
        common.show_own_warnings()
        here = {"category": UserWarning, "lineno": 1}
        for _ in range(2):
            warnings.warn_explicit("[v1] is\n  old", filename=common.__file__, module="peft_be.data", **here)
        warnings.warn_explicit("noise", filename="/elsewhere/torch/x.py", module="torch.x", **here)
        warnings.simplefilter("always")  # as some library does
        warnings.warn_explicit("more noise", filename="/elsewhere/torch/x.py", module="torch.x", **here)
    assert capsys.readouterr().err == "Note: [v1] is old\n"
