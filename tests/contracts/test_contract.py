"""Reading a contract: what is wrong is an error with file, line and key before any gate runs."""

import pytest

import pytest_modelserve as ms
from pytest_modelserve.contracts.contract import line_of

HEAD = 'subject = "candidate.onnx"\nreference = "champion.onnx"\ndata = "holdout.npz"\nlabels = "y"\n'


def test_gates_are_named_by_label_relation_rows_or_number(contract):
    gates = contract(
        HEAD
        + """
[gates.size]
max_bytes = "1 MiB"
[[gates.latency]]
max_ms = 2
[[gates.latency]]
max_ms = "2 ms"
rows = 1
[[gates.relation]]
relation = "finite_outputs"
[[gates.relation]]
relation = { type = "determinism", repeats = 2 }
[[gates.accuracy]]
where = { site = "a" }
min_value = "90 %"
label = "north"
"""
    )
    assert [gate.name for gate in gates] == [
        "size",
        "latency[1]",
        "latency[2]",
        "relation[finite_outputs]",
        "relation[determinism]",
        "accuracy[site=a, north]",
    ]
    assert gates[0].arguments == {"max_bytes": 1 << 20}
    assert [gate.place.line for gate in gates] == [6, 8, 10, 13, 15, 17]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject = 1 2", "release.modelgate.toml:1: not valid TOML"),
        ('subjct = "candidate.onnx"\n[gates.size]\nmax_bytes = 1', r":1: subjct: unknown key 'subjct': did you mean 'subject'"),
        ('subject = "candidate.onnx"', "gates is missing"),
        ('subject = "candidate.onnx"\n[gates]', "has no gates"),
        ("subject = 5\n[gates.size]\nmax_bytes = 1", ":1: subject: expected .*got a whole number"),
        ('subject = "x.onnx"\n[gates.size]\nmax_bytes = 1', r":1: subject: 'x.onnx' does not exist \(unknown file"),
        (HEAD + "[gates.sise]\nmax_bytes = 1", r":5: gates.sise: unknown gate 'sise': did you mean 'size'"),
        (HEAD + "[gates.size]\nmax_byte = 1", r":6: gates.size.max_byte: unknown key 'max_byte': did you mean 'max_bytes'"),
        (HEAD + "gates.size = 1", r":5: gates.size: expected a table, or a list of tables; got 1"),
        (HEAD + '[gates.size]\nmax_bytes = "2 ms"', r":6: gates.size.max_bytes: '2 ms' is not a number of bytes: give a number, or a text such as '1 MiB'"),
        (HEAD + "[gates.latency]\nmax_ms = true", r":6: gates.latency.max_ms: expected a number; got true"),
        (HEAD + '[gates.latency]\nmax_ms = 2\nclock = "walls"', r"unknown choice 'walls': did you mean 'wall'"),
        (HEAD + "[gates.latency]\nmax_ms = 2\nrows = 0", ":7: gates.latency.rows: expected a number of rows of at least 1"),
        (HEAD + "[gates.relation]", ":5: gates.relation: relation is missing"),
        (HEAD + "[gates.privacy_budget]\nmax_epsilon = 2\ndelta = 1e-5", 'trained is missing: give an object as "module:name"'),
        (HEAD + '[gates.relation]\nrelation = "finite"', r"unknown relation 'finite': did you mean 'finite_outputs'"),
        (HEAD + '[gates.relation]\nrelation = "monotone"', "monotone needs feature"),
        (HEAD + '[gates.relation]\nrelation = { type = "monotone", featur = 1 }', "unknown argument of monotone 'featur': did you mean 'feature'"),
        (HEAD + "[gates.accuracy]\nmin_value = 0.9\noutput = { decod = 1 }", ":7: gates.accuracy.output.* 'decod'"),
        (HEAD + "[gates.no_drift]\nmax_distance = 0.1", ":5: gates.no_drift: profile is missing"),
        (HEAD + '[gates.no_drift]\nprofile = "p.json"\nmax_distance = 0.1', ":6: gates.no_drift.profile: 'p.json' does not exist"),
        ('subject = "candidate.onnx"\n[gates.accuracy]\nmin_value = 1', "labels is missing, here or at the top"),
        ('subject = "candidate.onnx"\n[gates.latency]\nmax_ms = 1', ":2: gates.latency: data is missing, here or at the top"),
        (HEAD + "[[gates.size]]\nmax_bytes=1\nlabel='a'\n[[gates.size]]\nmax_bytes=2\nlabel='a'", r":8: gates.size\[2\]: two gates are called 'size\[a\]'"),
        (HEAD + '[gates.size]\nmax_bytes = 1\nlabel = "a\\u001b[31m\\nb"\nmax_rati = 1', r":8: gates.size.max_rati"),
    ],
)  # fmt: skip
def test_wrong_contract_is_an_error_with_file_line_and_key(contract, text, message):
    with pytest.raises(ms.UsageError, match=message):
        contract(text)


def test_path_outside_the_project_is_refused_unless_its_folder_is_stated(contract, project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("models") / "champion.onnx"
    elsewhere.write_bytes((project / "champion.onnx").read_bytes())
    text = f'subject = "candidate.onnx"\nreference = "{elsewhere}"\n[gates.size]\nmax_ratio = 1.0\n'
    with pytest.raises(
        ms.UsageError, match=r":2: reference: '.*champion.onnx' lies outside the project .* outside = \["
    ):
        contract(text)
    assert contract(f'outside = ["{elsewhere.parent}"]\n{text}')[0].name == "size"


def test_link_to_a_file_outside_the_project_is_refused(contract, project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("models") / "m.onnx"
    elsewhere.write_bytes(b"x")
    (project / "link.onnx").symlink_to(elsewhere)
    with pytest.raises(ms.UsageError, match="lies outside the project"):
        contract('subject = "link.onnx"\n[gates.size]\nmax_bytes = 1')


def test_two_contracts_for_one_subject_are_two_files_of_gates(contract):
    text = 'subject = "candidate.onnx"\n[gates.size]\nmax_bytes = {}\n'
    strict, loose = contract(text.format(1), name="a.modelgate.toml"), contract(text.format(9), name="b.modelgate.toml")
    assert [gates[0].place.document.path.name for gates in (strict, loose)] == ["a.modelgate.toml", "b.modelgate.toml"]


def test_gate_without_its_budget_is_inactive_and_says_where(contract):
    (gate,) = contract(HEAD + "[gates.latency]\n# max_ms = 2\n")
    assert gate.inactive == "no budget: set max_ms at release.modelgate.toml:5"


def test_gate_without_budgets_of_its_own_is_active(contract):
    assert contract(HEAD + "[gates.output_parity]\n[gates.conformant]\n")[1].inactive == ""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("subject",), 1),
        (("a", "b"), 4),
        (("a", "b", "max"), 6),
        (("list", 1, "x"), 11),
        (("list", 1, "gone"), 10),
        (("quoted key", "y"), 13),
        (("gone",), 1),
    ],
)
def test_lines_of_keys_are_found(keys, line):
    text = """subject = '''
[a.b]
'''
[a.b]  # comment
text = "max = 1"
max = 2
[[list]]
x = 1

[[list]]
x = 2
["quoted key"]
y.z = 3
"""
    assert line_of(text, keys) == line


def test_key_that_the_assertion_has_itself_is_its_argument(contract, project):
    ms.reference_profile(str(project / "holdout.csv")).save(project / "profile.json")
    (gate,) = contract(HEAD + '[gates.no_drift]\nprofile = "profile.json"\nmax_distance = 0.1\ncolumns = ["c0"]\n')
    assert (gate.arguments["columns"], gate.source.columns) == (("c0",), None)
