"""`peft-be compress --keep`: what must be exact stays text."""

from peft_be import BETokenConfig

from .conftest import PROMPT


PARTS = ["You are a lighthouse keeper.", "you never leave the island, whatever happens."]


def test_parts_of_the_prompt_are_kept(cli, job):
    keep = [option for part in reversed(PARTS) for option in ("--keep", part)]
    code, _, err = cli(*job.arguments, *keep)
    assert code == 0, err
    config = BETokenConfig.from_pretrained(job.folder / "out")
    assert config.kept_text == "\n".join(PARTS) and all(part in PROMPT for part in PARTS)
    evaluation = ["eval", job.folder / "out", "--prompt", job.folder / "prompt.txt"]
    evaluation += ["--queries", job.folder / "held_out.txt", "--max-answer-length", 4]
    code, out, err = cli(*evaluation)
    kept = config.provenance["kept_tokens"]
    ratio = config.provenance["prompt_tokens"] / (1 + kept)
    assert code == 0 and f"in 1 and {kept} of kept text ({ratio:.0f}x)" in out, err
    code, out, err = cli(*job.arguments, "--resume")
    assert code == 1 and "was started with another keep" in err and "Traceback" not in err


def test_nothing_is_kept_by_default(cli, job):
    assert cli(*job.arguments)[0] == 0
    assert BETokenConfig.from_pretrained(job.folder / "out").kept_text is None
    # As an empty list in Python
    assert cli(*job.arguments, "--resume")[0] == 0


def test_what_cannot_be_kept(cli, job):
    for options, words in (
        (["--keep", "You are a pirate."], "The prompt does not say 'You are a pirate.'"),
        (["--keep", PARTS[0], "--slot", "prefix"], "need slot 'system'"),
        (["--keep", PARTS[0], "--paper"], "need slot 'system'"),
    ):
        code, _, err = cli(*job.arguments, *options)
        assert code == 1 and words in err and "Traceback" not in err, err
        assert not (job.folder / "out").exists()
