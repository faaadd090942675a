"""How a command ends."""


def fails(result, *words):
    code, _, err = result
    assert code == 1, err
    # In front of the error stand notes, each in a line, such as that queries are few
    *notes, message = err.strip().splitlines()
    assert all(note.startswith("Note: ") for note in notes), err
    assert message.startswith("Error: ") and "Traceback" not in message
    for word in words:
        assert word in message, message
