"""Runs in folders, and settings whose best checkpoint is an early one."""

from peft_be.runs.folder import RunFolder


# Overshoots, and stops long before the end
OVERSHOOTING = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 60}
OFTEN = {"eval_steps": 2, "save_steps": 2, "logging_steps": 1, "max_answer_length": 6}


def finished(folder, text="first"):
    with RunFolder(folder, {}) as run:
        (folder / "rows").write_text(text)
        run.finish({})
    return folder


def content(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
