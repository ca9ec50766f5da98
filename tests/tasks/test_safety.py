"""Nothing that a task file says runs code, unless --allow-code: templates, metrics, scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cme_bench.tasks.spec import METADATA_KEYS, TASK_KEYS, load_spec
from cme_bench.util.errors import UsageError
from tests.support.workshop import TASK, Workshop

ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}",
    "{{ lipsum.__globals__['os'].system('touch {mark}') }}",
    "{% for i in range(999999999) %}{% endfor %}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_cannot_reach_python(workshop: Workshop, attack: str) -> None:
    mark = workshop.folder / "mark"
    text = workshop.yaml.read_text().replace("Q: {{ question }}", attack.replace("{mark}", str(mark)))
    workshop.yaml.write_text(text)
    with pytest.raises(UsageError, match=r"SecurityError|OverflowError|Range too big"):
        workshop.build()
    assert not mark.exists()


@pytest.mark.parametrize("metric", ["{metric: nosuch}", "{metric: acc, hf_evaluate: true}"])
def test_a_metric_is_not_fetched_as_code(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setattr("evaluate.load", lambda *_: pytest.fail("a metric was fetched"))
    file = workshop.write_yaml(more=f"metric_list: [{metric}]\n")
    with pytest.raises(
        UsageError, match=rf"{file}:11: (unknown metric 'nosuch'|.* code of the hub is not run)"
    ):
        workshop.build()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("own/data", "./scripts/evil.py", "dataset_path './scripts/evil.py' is no hub id"),
        ("own/data", "../../etc", "dataset_path '../../etc' is no hub id"),
        ("own/data", "/etc/x", "dataset_path '/etc/x' is no hub id"),
        ("task: own_ll", "task: a/b", "task name 'a/b' is no plain name"),
        ("metadata:", "unsafe_code: true\nmetadata:", "code that a model writes is never run"),
    ],
)
def test_scripts_and_names_that_lead_elsewhere_are_refused(
    workshop: Workshop, old: str, new: str, message: str
) -> None:
    workshop.yaml.write_text(workshop.yaml.read_text().replace(old, new))
    with pytest.raises(UsageError) as caught:
        workshop.build(allow_code=True)
    assert message in str(caught.value)


def test_code_that_is_allowed_fetches_no_metric(workshop: Workshop) -> None:
    """``evaluate.load`` fetches code and runs it, which --allow-code does not speak of."""
    text = "import evaluate\nmetric = evaluate.load('rouge')\ndef f(rows): return rows\n"
    (workshop.yaml.parent / "own.py").write_text(text)
    workshop.write_yaml(more="process_docs: !function own.f\n")
    with pytest.raises(UsageError, match=r"evaluate.load\('rouge'\): code of the hub is not run"):
        workshop.build(allow_code=True)


def test_trust_remote_code_is_a_note(workshop: Workshop) -> None:
    file = workshop.write_yaml(more="dataset_kwargs: {trust_remote_code: true}\n")
    assert workshop.build().spec.notes == (
        f"{file}:11: trust_remote_code has no effect: data-set scripts are never run",
    )


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.just("test"),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(sorted(TASK_KEYS | {"include", "class", "metadata"}))
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(tmp_path: Path, content: bytes) -> None:
    """The file is a task, or refused by one line that names it."""
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(content)
    try:
        spec = load_spec(file, root=tmp_path)
    except UsageError as err:
        assert str(err).startswith(str(tmp_path))
        assert "\n" not in str(err)
        return
    assert spec is not None
    # whatever was accepted can be listed, shown and planned
    assert all((spec.name, spec.domain, spec.dataset, spec.folder, spec.primary, spec.eval_split))
    assert spec.num_fewshot >= 0
    assert spec.items is None or spec.items >= 0
    assert spec.file_stem(spec.eval_split)
    assert isinstance(spec.tags, tuple)


@FUZZ
@given(
    st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(st.sampled_from(sorted(METADATA_KEYS)), VALUES)
)
def test_any_values_are_a_task_or_one_line(
    tmp_path: Path, values: dict[str, object], metadata: dict[str, object]
) -> None:
    import yaml

    base = yaml.safe_load(TASK.format(form="ll", output_type="multiple_choice"))
    base["metadata"] |= metadata
    load(tmp_path, yaml.safe_dump(base | values, allow_unicode=True).encode("utf-8", "surrogatepass"))


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(alphabet="task: []{}&*!|>-?#%@'\"\n\t<=", max_size=60).map(str.encode),
        st.text(alphabet="ab:&*-[]{} \n", max_size=30).map(lambda t: f"task: x\n{t}".encode()),
    )
)
def test_any_bytes_are_a_task_or_one_line(tmp_path: Path, content: bytes) -> None:
    load(tmp_path, content)
