"""What a run prints and writes when all goes well."""

import json


def test_compress_then_bench(cli, job):
    code, out, err = cli(*job.with_(max_minutes=1))
    assert code == 0, err
    assert "{'" not in out  # the trainer's own logging
    figures = job.folder / "latency.json"
    arguments = ["--prompt", job.folder / "prompt.txt", "--repeats", 2, "--new-tokens", 2, "--batch-sizes", "1,2"]
    code, out, err = cli("bench", job.folder / "out", *arguments, "--json", figures)
    assert code == 0, err
    result = json.loads(figures.read_text())
    assert result["training_seconds"] == json.loads((job.folder / "out" / "training.json").read_text())["seconds"]
    assert [batch["batch_size"] for batch in result["batches"]] == [1, 2]
    for text in ("first token, ms", "KV cache, MB", "NormFLOPs", "are paid"):
        assert text in out


def test_bench_refuses_batch_sizes_that_are_no_numbers(cli, job):
    assert cli(*job.arguments)[0] == 0
    options = ["--prompt", job.folder / "prompt.txt", "--batch-sizes", "1,many"]
    code, _, err = cli("bench", job.folder / "out", *options)
    assert code == 1 and "--batch-sizes takes whole numbers" in err
