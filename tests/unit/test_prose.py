"""The language of the package: unique class names, and docstrings that begin with a verb."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.support.syntax_trees import nodes

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for top in ("clover", "models", "bench")
    for path in sorted((ROOT / top).rglob("*.py"))
}
FOLDERS = sorted({file.rpartition("/")[0] for file in FILES})
Function = ast.FunctionDef | ast.AsyncFunctionDef

# The first words of docstrings.  Is yours a verb in the imperative?  Then add it.
VERBS = frozenset(
    """
    Accept Add Adjust Admit Allow Answer Append Apply Ask Assign Attach Audit Batch Be Become Begin Bind Book
    Bound Bring Build Calculate Call Cancel Carry Change Charge Check Choose Clear Close Collect Combine Come
    Compare Compile Complete Compute Convert Copy Count Create Damage Deal Decode Decompress Deliver Deploy
    Derive Describe Detach Die Discard Dispatch Divide Do Drain Draw Drive Drop Encode End Enter Escape Estimate
    Evaluate Execute
    Expect Expire Export Extend Fail Fetch Fill Find Finish Fold Follow Forget Fork Format Free Gather Generate
    Get Give Go Grow Guess Halve Hand Handle Have Hold Ignore Import Increase Insert Install Iterate Join Judge Keep
    Kill Launch Lay Leave Let Limit List Listen Load Lock Log Look Lower Make Map Mark Match Measure Merge Move
    Name Note Obey Observe Offer Open Order Override Parse Pass Pick Pin Place Plan Play Predict Prefer Prepare
    Print Prove Publish Pull Push Put Queue Raise Rank Read Rebuild Receive Record Refuse Register Release
    Reload Remove Render Repeat Replace Replay Report Require Reserve Reset Resolve Respond Restart Restore
    Resume Retry Return Revert Ring Route Run Sample Save Say Scale Schedule Score Search See Select Send
    Separate Serve Set Shift Show Shrink Shut Sign Simulate Skip Sleep Solve Sort Spawn Spend Split Stand Start
    State Step Stop Store Strike Submit Subtract Sum Swap Switch Take Tear Tell Test Time Train Translate Trim
    Try Turn Undo Unload Unlock Unmake Update Use Validate Verify Visit Wait Walk Warm Warn Watch Withdraw Wrap
    Write Yield
    """.split()  # noqa: SIM905
)


def files_in(folder: str) -> list[str]:
    """Return the files that stand in a folder itself."""
    return [file for file in FILES if file.rpartition("/")[0] == folder]


@cache
def functions(file: str) -> tuple[Function, ...]:
    """Return every function of a file that is not a property."""
    return tuple(
        node
        for node in nodes(FILES[file])
        if isinstance(node, Function) and not any("property" in ast.unparse(one) for one in node.decorator_list)
    )


def first_word(docstring: str) -> str:
    """Return the first word of a docstring, up to the first space."""
    return docstring.split(maxsplit=1)[0].rstrip(".,:;")


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_of_functions_begin_with_a_verb(folder: str) -> None:
    faults = [
        f"{file}:{function.lineno}: {function.name}: {docstring.splitlines()[0]}"
        for file in files_in(folder)
        for function in functions(file)
        if (docstring := ast.get_docstring(function)) and first_word(docstring) not in VERBS
    ]
    assert not faults, "say what the call does (or add the verb to VERBS):\n" + "\n".join(faults)


def test_public_classes_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for file, path in FILES.items():
        if file.startswith("clover/"):
            for node in ast.iter_child_nodes(nodes(path)[0]):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(file)
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert not shared


@pytest.mark.parametrize(
    ("docstring", "well"), [("Return x.", True), ("The x.", False), ("`x` if y.", False), ("Returns x.", False)]
)
def test_the_gate_knows_a_verb(docstring: str, well: bool) -> None:
    assert (first_word(docstring) in VERBS) is well
