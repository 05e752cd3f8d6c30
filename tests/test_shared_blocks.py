"""The matrix scripts import nothing from each other: what they share is written out in each, in the same words.

A block is a top-level definition of a script with the comments above it; `imports`, `inline script metadata` and
`__main__` are blocks too, and so is every flag, as `Args.seed`, and every method of Args, as `Args.__post_init__`. All
blocks of the first script must be in the others, in the same order and with the same source, except the leader's own. A
new script is one more line in conftest.MATRIX_SCRIPTS; a place where it has to differ is one more entry in DIFFERENCES.
"""

import ast
import difflib
import functools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import MATRIX_SCRIPTS

LAST_SHARED_FLAG = "verification_iterations"  # the flags below it are the leader's
OWN_BLOCKS = {"docstring", "Leader", "train_leader"}

# (script, block): what the first script has there and what this one has instead, as often as needed
DIFFERENCES = {
    ("stackelberg_pg_matrix", "Args.total_timesteps"): [
        ("200_000", "178_500"),
        ('queries included"""', 'queries included (500 and 1,200\n    iterations, Table 4)"""'),
    ],
    ("stackelberg_pg_matrix", "Args.__post_init__"): [('"adam_eps", "ent_coef"}', '"adam_eps"}')],
    ("stackelberg_dqn_matrix", "imports"): [("from typing import Literal\n", "")],
    ("stackelberg_dqn_matrix", "Args.__post_init__"): [
        ('"adam_eps", "ent_coef"}', '"learning_starts", "n_step"}'),
        ("        self.num_envs = math.ceil(self.batch_size / length)\n", ""),
        (
            'must hold a batch each")\n',
            """\
must hold a batch each")
        if self.leader_iterations * self.num_envs * length < self.learning_starts + self.train_frequency:
            raise ValueError("--learning-starts must leave the leader's steps a gradient step")
""",
        ),
    ],
    ("stackelberg_dqn_matrix", "main"): [
        ("global_step = table_index(leader.actor.", "global_step = table_index(leader.q_network."),
        ("    index = table_index(leader.actor.", "    index = table_index(leader.q_network."),
    ],
}


@functools.cache
def blocks_of(source):
    """Splits a script into its blocks: name -> source, in order. Together they are the whole file."""
    lines, blocks, end = source.splitlines(keepends=True), {}, 0

    def add(name, last_line):
        nonlocal end
        blocks[name] = blocks.get(name, "") + "".join(lines[end:last_line])
        end = last_line

    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr):
            add("inline script metadata", node.lineno - 1)
            add("docstring", node.end_lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            add("imports", node.end_lineno)
        elif isinstance(node, ast.If):
            add("__main__", len(lines))
        elif isinstance(node, ast.Assign):
            add(ast.unparse(node.targets[0]), node.end_lineno)
        elif node.name == "Args":
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign):
                    flag = statement.target.id
                elif isinstance(statement, ast.Expr):  # the docstring under a flag
                    add(f"Args.{flag}", statement.end_lineno)
                else:
                    add(f"Args.{statement.name}", statement.end_lineno)
        else:
            add(node.name, node.end_lineno)
    assert "".join(blocks.values()) == source
    return blocks


def shared_blocks_of(source):
    """Returns the blocks of a script that are not its own."""
    blocks = blocks_of(source)
    flags = [name for name in blocks if name.startswith("Args.") and not name.startswith("Args.__")]
    own = {*OWN_BLOCKS, *flags[flags.index(f"Args.{LAST_SHARED_FLAG}") + 1 :]}
    return {name: text for name, text in blocks.items() if name not in own}


def read_scripts():
    return {script: Path(find_spec(script).origin).read_text() for script in MATRIX_SCRIPTS}


def drift(sources):
    """Compares scripts (name -> source) to the first of them; returns one message for each block that differs."""
    first = next(iter(sources))
    messages = []
    for script in list(sources)[1:]:
        expected = shared_blocks_of(sources[first])
        blocks = shared_blocks_of(sources[script])
        for block, text in expected.items():
            for old, new in DIFFERENCES.get((script, block), ()):
                if text.count(old) != 1:
                    messages.append(
                        f"block {block} of {first}.py lacks what DIFFERENCES replaces in {script}.py: {old}"
                    )
                text = text.replace(old, new)
            if block not in blocks:
                messages.append(f"block {block} of {first}.py is missing in {script}.py")
            elif blocks[block] != text:
                names = f"{block} in {first}.py", f"{block} in {script}.py"
                texts = text.splitlines(keepends=True), blocks[block].splitlines(keepends=True)
                difference = "".join(difflib.unified_diff(*texts, *names))
                messages.append(f"block {block} of {script}.py differs from {first}.py:\n{difference}")
        if [name for name in blocks if name in expected] != [name for name in expected if name in blocks]:
            messages.append(f"the blocks of {script}.py are in another order than those of {first}.py")
    return messages


def change_one_character(source, block):
    """Changes one letter or digit near the middle of a block, so that the script still parses into the same blocks."""
    blocks = blocks_of(source)
    text, start = blocks[block], "".join(blocks.values()).index(blocks[block])
    for place in sorted((m.start() for m in re.finditer(r"\w", text)), key=lambda place: abs(place - len(text) // 2)):
        changed = "7" if text[place] != "7" else "8"
        changed = source[: start + place] + changed + source[start + place + 1 :]
        try:
            if list(blocks_of(changed)) == list(blocks):
                return changed
        except SyntaxError:
            pass
    raise AssertionError(f"no character of {block} can be changed")


def test_shared_blocks_have_the_same_source():
    messages = drift(read_scripts())
    assert not messages, "\n" + "\n".join(messages)


def test_every_block_that_a_reader_expects_is_shared():
    """The rule "all but the leader's own" covers what must never drift."""
    shared = shared_blocks_of(read_scripts()[MATRIX_SCRIPTS[0]])
    assert {"PAYOFFS", "MatrixGame", "LeaderPOMDP", "TABLES", "play", "solve", "random_leaders", "make_envs"} <= {
        *shared
    }
    assert {"train_follower", "pretrain_follower", "load_follower", "verify", "steps_to_converge"} <= {*shared}
    assert {"start_run", "finish", "main", "imports", "inline script metadata", "__main__"} <= {*shared}
    assert {"Args.seed", "Args.follower_learning_rate", "Args.__post_init__"} <= {*shared}


@pytest.mark.parametrize("script", MATRIX_SCRIPTS)
def test_one_changed_character_is_found_and_named(script, tmp_path):
    """The test of the test: in each script and each of its shared blocks, a copy with one character changed."""
    sources = read_scripts()
    first = shared_blocks_of(sources[MATRIX_SCRIPTS[0]])
    shared = [name for name in shared_blocks_of(sources[script]) if name in first]
    assert len(shared) > 30
    for block in shared:
        copy = tmp_path / f"{script}.py"
        copy.write_text(change_one_character(sources[script], block))
        messages = drift({**sources, script: copy.read_text()})
        # a change in the first script makes all others differ from it
        others = [script] if script != MATRIX_SCRIPTS[0] else MATRIX_SCRIPTS[1:]
        for other in others:
            found = [message for message in messages if message.startswith(f"block {block} of {other}.py differs")]
            assert len(found) == 1, f"{block} of {script}: {messages}"
            assert f"--- {block} in {MATRIX_SCRIPTS[0]}.py" in found[0] and f"+++ {block} in {other}.py" in found[0]
            assert re.search(r"^-.*\n(-.*\n)*\+", found[0], re.M)  # the lines themselves
        assert all(message.startswith(f"block {block} of ") for message in messages), messages


@pytest.mark.parametrize("script", MATRIX_SCRIPTS[1:])
@pytest.mark.parametrize("block", ["solve", "Args.__post_init__"])
def test_a_missing_block_is_found_and_named(script, block):
    sources = read_scripts()
    without = sources[script].replace(blocks_of(sources[script])[block], "")
    assert drift({**sources, script: without}) == [f"block {block} of {MATRIX_SCRIPTS[0]}.py is missing in {script}.py"]
