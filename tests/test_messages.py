from tests import messages


def test_the_page_of_messages_is_what_the_commands_say():
    found, kept = messages.page().splitlines(), messages.PAGE.read_text().splitlines()
    changed = [line for line in found if line not in kept] + [f"gone: {line}" for line in kept if line not in found]
    assert found == kept, "if these are meant, run `python -m tests.messages` and commit the page:\n" + "\n".join(
        changed
    )


def test_every_mistake_on_the_page_is_one_sentence_of_the_verb_and_code_2():
    rows = [
        line.strip("| ").split(" | ", 2) for line in messages.PAGE.read_text().splitlines() if line.startswith("| `")
    ]
    rows = [row for row in rows if row[0] != "`scaling` ..."]
    assert len(rows) == sum(map(len, messages.CASES.values()))
    for command, code, sentence in rows:
        assert code == "2" and sentence.startswith(f"scaling {command.strip('`').split()[0]}: error: "), command
